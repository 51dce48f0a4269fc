//! Mirrors against real git.
