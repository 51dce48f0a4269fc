//! The host daemon's integration tests: one binary, because each one links everything again.

mod engine_contract;
mod environment;
mod mirror;
mod output;
mod shipping;
mod sweeper;
