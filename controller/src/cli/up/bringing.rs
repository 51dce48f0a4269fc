//! The order in which `devfleet up` brings things up, and what it waits for in between.

use std::io::ErrorKind;
use std::time::Duration;

use devfleet_proto::v1;
use devfleet_shared::clock::Boot;
use devfleet_shared::secret::Secret;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::super::Session;
use super::super::connection::{self, Connection};
use super::super::context::Context;
use super::super::exit::Exit;
use super::super::failure::CliError;
use super::child::Child;
use super::settings::Settings;

/// How long each child may take to get ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the controller may take to write the first operator's token.
const TOKEN_PATIENCE: Duration = Duration::from_secs(10);
/// How often we look.
const INTERVAL: Duration = Duration::from_millis(100);

/// What the ready line says.
#[derive(Debug)]
pub(super) struct Ready {
    /// The host's name.
    pub(super) host: String,
    /// Its slots.
    pub(super) slots: u64,
    /// What is wrong with it.
    pub(super) problems: Vec<String>,
}

/// Starts the controller, then the host, and waits until both work.
pub(super) async fn bring_up(
    settings: &Settings,
    controller: &mut Child,
    host: &mut Child,
    session: &Session,
) -> Result<Ready, CliError> {
    session.output.wait_for("starting the controller");
    controller.start(None).await?;
    let authority = until_serving(settings, controller, session).await?;
    let connection = operator(settings, &authority, session).await?;
    session.output.wait_for("starting the host daemon");
    let token = join_token(settings, &authority, &connection).await?;
    host.start(token.as_ref()).await?;
    until_connected(settings, &connection, controller, host, session).await
}

async fn until_serving(settings: &Settings, child: &mut Child, session: &Session) -> Result<String, CliError> {
    let deadline = Deadline::after(session, PATIENCE);
    loop {
        child.check()?;
        if let Ok(authority) = std::fs::read_to_string(&settings.authority_file)
            && let Ok(channel) = connection::channel(std::slice::from_ref(&settings.url), &authority)
        {
            let mut request = tonic::Request::new(HealthCheckRequest::default());
            request.set_timeout(Duration::from_secs(5));
            let answer = HealthClient::new(channel).check(request).await;
            if answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving) {
                // One that is bound to end, because another has its port, must not pass for this one.
                child.check()?;
                return Ok(authority);
            }
        }
        if deadline.is_over(session) {
            return Err(child.died("the controller did not get ready within a minute"));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Finds a token that works, in the context or in what the controller wrote at its first start, and sees that the
/// context holds it.
async fn operator(settings: &Settings, authority: &str, session: &Session) -> Result<Connection, CliError> {
    let path = &session.context_path;
    let kept = match Context::load(path) {
        Ok(context) => Some(context).filter(|context| context.authority.trim() == authority.trim()),
        Err(CliError::NoContext(_)) => None,
        Err(error) => return Err(error),
    };
    // The first start writes the token a moment after it serves.
    let deadline = Deadline::after(session, if kept.is_some() { Duration::ZERO } else { TOKEN_PATIENCE });
    let first = loop {
        match bootstrap(settings, authority)? {
            None if !deadline.is_over(session) => tokio::time::sleep(INTERVAL).await,
            found => break found,
        }
    };
    for (context, is_new) in kept.into_iter().map(|kept| (kept, false)).chain(first.map(|first| (first, true))) {
        let connection = Connection::new(&context)?;
        let who = connection.read(async || connection.fleet().who_am_i(v1::WhoAmIRequest {}).await).await;
        match who {
            Ok(_) => {
                if is_new {
                    context.save(path)?;
                }
                return Ok(connection);
            }
            Err(error) if error.exit() == Exit::DENIED => {}
            Err(error) => return Err(error),
        }
    }
    Err(CliError::Local {
        problem: format!("no token works: neither that of {} nor that of {}", path.display(), settings.bootstrap_file.display()),
        advice: "give the context that an operator of this controller uses with --context-file; if none is left, begin anew \
                 with another --data-dir"
            .into(),
    })
}

fn bootstrap(settings: &Settings, authority: &str) -> Result<Option<Context>, CliError> {
    match std::fs::read_to_string(&settings.bootstrap_file) {
        Ok(token) => Ok(Some(token.trim())
            .filter(|token| !token.is_empty())
            .map(|token| context(settings, authority, Secret::new(token)))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CliError::File { action: "read", path: settings.bootstrap_file.clone(), source }),
    }
}

fn context(settings: &Settings, authority: &str, token: Secret) -> Context {
    Context { controllers: vec![settings.url.clone()], authority: authority.to_owned(), token }
}

/// Makes a join token if the host has no identity yet.
async fn join_token(settings: &Settings, authority: &str, connection: &Connection) -> Result<Option<Secret>, CliError> {
    if settings.identity.join("host.pem").exists() {
        let known = std::fs::read_to_string(settings.identity.join("authority.pem")).unwrap_or_default();
        if known.trim() == authority.trim() {
            return Ok(None);
        }
        return Err(CliError::Local {
            problem: format!("the host's identity in {} is of another controller", settings.identity.display()),
            advice: "move that folder away; the host then joins this controller as a new one".into(),
        });
    }
    let mut fleet = connection.fleet();
    let answer = connection.write(fleet.create_join_token(v1::CreateJoinTokenRequest::default())).await?;
    Ok(Some(Secret::new(answer.token)))
}

async fn until_connected(
    settings: &Settings,
    connection: &Connection,
    controller: &mut Child,
    host: &mut Child,
    session: &Session,
) -> Result<Ready, CliError> {
    let deadline = Deadline::after(session, PATIENCE);
    loop {
        controller.check()?;
        host.check()?;
        let answer = connection.read(async || connection.fleet().list_hosts(v1::ListHostsRequest {}).await).await?;
        let id = std::fs::read_to_string(settings.identity.join("host-id")).unwrap_or_default();
        let is_ours =
            |host: &v1::Host| if id.is_empty() { host.name == settings.host_name } else { host.id == id.trim() };
        let found = answer.hosts.into_iter().find(|host| host.connected && is_ours(host));
        if let Some(v1::Host { name, inventory: Some(inventory), .. }) = found {
            let slots = inventory.total.map(|total| total.slots).unwrap_or_default();
            return Ok(Ready { host: name, slots, problems: inventory.problems });
        }
        if deadline.is_over(session) {
            return Err(host.died("the host daemon did not connect within a minute"));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

struct Deadline(Boot);

impl Deadline {
    fn after(session: &Session, patience: Duration) -> Self {
        Self(Boot(session.clock.boot().0 + patience))
    }

    fn is_over(&self, session: &Session) -> bool {
        session.clock.boot() > self.0
    }
}
