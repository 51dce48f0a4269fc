//! Streaming masking of secrets in output.
