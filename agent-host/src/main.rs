//! Starts the host daemon.
fn main() {}
