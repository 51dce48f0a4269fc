//! The controller's integration tests: one binary, because each one links everything again.

mod derivation;
