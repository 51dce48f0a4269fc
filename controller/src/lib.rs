//! The controller: takes jobs from people, derives environments, waits for approval, gives attempts to hosts, opens
//! merge requests. `reconcile` is the heart; `api` is the door; `store` is the memory.

pub mod artifacts;
pub mod config;
pub mod files;
pub mod project;
pub mod secrets;

pub mod controllers;
pub mod store;
pub mod view;

pub mod identity;

pub mod environment;
pub mod forge;
pub mod forges;
pub mod gates;
pub mod publish;

pub mod expiry;
pub mod hosts;
pub mod jobs;
pub mod leader;
pub mod quarantine;
pub mod reclaim;
pub mod reconcile;
pub mod retries;
pub mod scheduler;

pub mod logs;
pub mod sessions;
pub mod timers;

pub mod api;
pub mod server;
pub mod upkeep;

pub mod cli;
