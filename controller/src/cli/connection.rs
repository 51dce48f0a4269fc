//! The way to the controller: TLS to the context's authority, the token on every call, a deadline on every unary call.
//!
//! Of several controllers the first that answers is asked. What only reads is tried again when none can be reached; so is a
//! submission, whose key makes it safe.

use std::sync::Arc;
use std::time::Duration;

use devfleet_proto::dial;
use devfleet_proto::v1::fleet_client::FleetClient;
use devfleet_proto::v1::jobs_client::JobsClient;
use devfleet_shared::backoff::Backoff;
use devfleet_shared::endpoints::Endpoints;
use devfleet_shared::error::Chain;
use devfleet_shared::tls;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::context::Context;
use super::failure::{CliError, untrusted};

/// The time for one call.
const DEADLINE: Duration = Duration::from_secs(30);
/// The time for a call that waits for hosts.
const LONG_DEADLINE: Duration = Duration::from_secs(150);
/// How often a call is repeated when the controller cannot be reached.
const REPETITIONS: u32 = 4;
/// The pace of those.
const PACE: Backoff = Backoff { first: Duration::from_millis(100), ceiling: Duration::from_secs(1) };
/// The largest answer that is taken, in bytes.
const ANSWER_BYTES: usize = 64 << 20;

/// Adds the token, and the deadline of unary calls.
#[derive(Clone, Debug)]
pub struct Bearer {
    value: Option<MetadataValue<Ascii>>,
    deadline: Option<Duration>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.value {
            request.metadata_mut().insert("authorization", value.clone());
        }
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        Ok(request)
    }
}

/// A channel with the token on it.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// A connection to the controller, made when it is first used.
#[derive(Clone, Debug)]
pub struct Connection {
    controller: String,
    channel: Channel,
    value: Option<MetadataValue<Ascii>>,
}

/// Makes a channel to whichever of these controllers answers; one authority certified them all.
pub fn channel(controllers: &[String], authority: &str) -> Result<Channel, String> {
    let config = Arc::new(tls::client(authority, None).map_err(|error| Chain(&error).to_string())?);
    let endpoints = Endpoints::new(controllers.to_vec()).ok_or("it names no controller")?;
    dial::lazily(Arc::new(endpoints), move || Arc::clone(&config)).map_err(|error| Chain(&error).to_string())
}

impl Connection {
    /// Prepares the connection; nothing is sent yet.
    pub fn new(context: &Context) -> Result<Connection, CliError> {
        let unusable = |problem: String| CliError::Usage(format!("the context is wrong: {problem}"));
        let controller = context.controllers.join(", ");
        let channel = channel(&context.controllers, &context.authority)
            .map_err(|error| unusable(format!("{controller} ({error})")))?;
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", context.token.expose())
            .parse()
            .map_err(|_| unusable("its token holds characters that no token has".into()))?;
        value.set_sensitive(true);
        Ok(Connection { controller, channel, value: Some(value) })
    }

    /// Returns the controllers' URLs, for people.
    pub fn controller(&self) -> &str {
        &self.controller
    }

    fn service(&self, deadline: Option<Duration>) -> Authorized {
        InterceptedService::new(self.channel.clone(), Bearer { value: self.value.clone(), deadline })
    }

    /// Returns the client for unary calls about jobs.
    pub fn jobs(&self) -> JobsClient<Authorized> {
        JobsClient::new(self.service(Some(DEADLINE))).max_decoding_message_size(ANSWER_BYTES)
    }

    /// Returns the client for streams about jobs, which have no deadline.
    pub fn streams(&self) -> JobsClient<Authorized> {
        JobsClient::new(self.service(None)).max_decoding_message_size(ANSWER_BYTES)
    }

    /// Returns the client for calls about the fleet.
    pub fn fleet(&self) -> FleetClient<Authorized> {
        FleetClient::new(self.service(Some(DEADLINE))).max_decoding_message_size(ANSWER_BYTES)
    }

    /// Returns the client for calls about the fleet that wait for hosts.
    pub fn patient_fleet(&self) -> FleetClient<Authorized> {
        FleetClient::new(self.service(Some(LONG_DEADLINE))).max_decoding_message_size(ANSWER_BYTES)
    }

    /// Makes a call that is safe to repeat.
    pub async fn read<T>(&self, call: impl AsyncFn() -> Result<Response<T>, Status>) -> Result<T, CliError> {
        let mut tries = 0;
        loop {
            match call().await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if is_transient(&status) && tries < REPETITIONS => {
                    tries += 1;
                    tokio::time::sleep(PACE.pause(tries, Backoff::jitter())).await;
                }
                Err(status) => return Err(self.failure(status)),
            }
        }
    }

    /// Makes a call once.
    pub async fn write<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, CliError> {
        call.await.map(Response::into_inner).map_err(|status| self.failure(status))
    }

    /// Takes what a call or a stream answered.
    pub fn failure(&self, status: Status) -> CliError {
        CliError::of(status, &self.controller)
    }
}

/// Says whether the same call may succeed a moment later: nobody answered.
pub fn is_transient(status: &Status) -> bool {
    status.code() == Code::Unavailable && untrusted(status).is_none()
}
