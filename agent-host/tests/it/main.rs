//! The host daemon's integration tests: one binary, because each one links everything again.

mod engine_contract;
mod mirror;
mod output;
mod shipping;
