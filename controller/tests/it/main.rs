//! Tests of the controller from outside.


mod store_contract;
mod store_crash;
