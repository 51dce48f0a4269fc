//! The host daemon: carries out attempts on one container engine for a controller.
//!
//! `session` receives what this host is to have, `supervisor` runs one `attempt` each, `environment` builds and
//! unbuilds a devbox on the `engine`, `output` and `spool` bring its log home, `sweeper` removes what nobody owns.

pub mod config;
pub mod daemon;
pub mod identity;

pub mod session;

pub mod admitted;
pub mod assignments;
pub mod attempt;
pub mod supervisor;

pub mod caches;
pub mod engine;
pub mod environment;
pub mod freeze;
pub mod ledger;
pub mod mirror;

pub mod output;
pub mod spool;

pub mod blocking;
pub mod disk;
pub mod sweeper;
