//! What the integration tests stand on: other people's services, spoken for by programs of our own.

pub(crate) mod anthropic;
pub(crate) mod between;
pub(crate) mod certificates;
pub(crate) mod engine;
pub(crate) mod etcd;
pub(crate) mod gitlab;
pub(crate) mod looking;
pub(crate) mod proxy;
pub(crate) mod s3;
pub(crate) mod site;
pub(crate) mod stores;
