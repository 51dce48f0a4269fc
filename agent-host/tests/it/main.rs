//! The host daemon's integration tests: one binary, because each one links everything again.

mod attempt;
mod engine_contract;
mod ledger;
mod mirror;
mod output;
mod session;
mod shipping;
mod world;
