//! The host daemon's integration tests: one binary, because each one links everything again.

mod attempt;
mod engine_contract;
mod environment;
mod freeze;
mod frozen;
mod ledger;
mod mirror;
mod output;
mod registry;
mod session;
mod shipping;
mod sweeper;
mod watchdog;
mod world;
