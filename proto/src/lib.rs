//! The wire of devfleet: generated messages and services, and conversion to and from the vocabulary.
//!
//! The only crate that knows both spellings of a type. A new field goes into the `.proto` file, into `convert`, and
//! into the vocabulary; nothing else changes. `dial` is how hosts and people connect to a controller.

pub mod convert;
pub mod dial;

/// Version 1 of the wire.
#[expect(clippy::allow_attributes, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("devfleet.v1");
}

/// The descriptor set of all services, for reflection and for tests that walk every call.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("devfleet");
