//! Tests of the controller from outside.

mod identity;
mod store_contract;
mod store_crash;
