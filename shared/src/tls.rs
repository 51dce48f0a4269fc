//! Certificates and TLS settings that both programs use.
