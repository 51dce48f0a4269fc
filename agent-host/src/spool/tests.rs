//! Spools after crashes and damage.
