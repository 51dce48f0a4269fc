//! The controller's integration tests: one binary, because each one links everything again.

mod cli;
mod controllers;
mod derivation;
mod e2e;
mod etcd;
mod forge_contract;
mod gates;
mod hosts;
mod identity;
mod jobs;
mod joining;
mod leader;
mod logs;
mod migrate;
mod placing;
mod proving;
mod quarantine;
mod reclaim;
mod store_contract;
mod store_crash;
mod support;
mod view;
