//! Tests of the host daemon that run it against real or scripted surroundings.

mod engine_contract;
mod environment;
