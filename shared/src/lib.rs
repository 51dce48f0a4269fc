//! The vocabulary of devfleet, in reading order: what is asked for, how it lives, what it is made of, and the few
//! things that every program needs. No network, no store, no engine.

pub mod id;
pub mod job;

pub mod attempt;

pub mod admission;
pub mod assignment;
pub mod environment;
pub mod protocol;
pub mod resources;
pub mod units;

pub mod mask;
pub mod secret;

pub mod backoff;
pub mod clock;
pub mod endpoints;

pub mod error;
pub mod telemetry;
pub mod tls;
