//! Docker, over its socket.

/// Docker at one socket.
pub struct DockerEngine {
    address: String,
}

impl DockerEngine {
    /// Names the engine at `unix:///path` (or a plain path). Nothing is asked until the first call.
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned() }
    }
}
