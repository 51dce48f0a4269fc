//! Brings spooled log records to the controller.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::Spools;

/// Gives a fresh connection to the controller.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Connects.
    async fn dial(&self) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>>;
}

/// Ships all spools over one connection of its own.
pub struct LogShipper {
    spools: Spools,
    dial: Arc<dyn Dial>,
}

/// What others may ask of the shipper.
#[derive(Clone)]
pub struct LogShipperHandle {}

impl LogShipper {
    /// Makes a shipper and its handle.
    pub fn new(spools: Spools, dial: Arc<dyn Dial>) -> (LogShipper, LogShipperHandle) {
        (LogShipper { spools, dial }, LogShipperHandle {})
    }
    /// Ships until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let _ = (&self.spools, &self.dial);
        shutdown.cancelled().await;
    }
}
