//! `devfleet tokens`, `join-token` and `whoami`: who may do what.
//!
//! A new token is the only thing on standard output, so that a script can keep it; all else goes to standard error.

use clap::{Subcommand, ValueEnum};
use devfleet_proto::v1;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::units::Span;

use super::exit::Exit;
use super::failure::CliError;
use super::shape::{self, list, moment, record};
use super::{Session, render};

#[derive(Debug, Subcommand)]
pub(super) enum TokensCommand {
    /// Make a token for a person or a script; it is shown once
    Create {
        /// Whose it is; shown at everything done with it
        #[arg(long, value_name = "NAME")]
        name: String,
        /// What it allows; each role includes those before it
        #[arg(long, value_enum, value_name = "ROLE")]
        role: RoleName,
        /// How long it is valid: 12h, 30d [default: until it is revoked]
        #[arg(long, value_name = "TIME")]
        ttl: Option<Span>,
    },
    /// List the tokens, without their secrets
    List,
    /// End a token at once
    Revoke {
        /// The token's id, as `devfleet tokens list` shows it
        id: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum RoleName {
    /// Sees everything, changes nothing
    Viewer,
    /// Hands in and cancels jobs
    Submitter,
    /// Approves and rejects proposals
    Approver,
    /// Runs the fleet: projects, hosts, tokens
    Operator,
}

#[derive(Debug, Subcommand)]
pub(super) enum JoinTokenCommand {
    /// Make a token with which hosts join the fleet; it is shown once
    Create {
        /// How long it is valid: 15m, 24h at most
        #[arg(long, value_name = "TIME", default_value = "15m")]
        ttl: Span,
        /// How many hosts may join with it; 1000 at most
        #[arg(long, value_name = "N", default_value_t = 1)]
        uses: u32,
        /// Label the hosts that join with it: zone=eu; may be repeated
        #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
    },
}

/// Reads `NAME=VALUE`.
fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE, for example zone=eu".to_owned()),
    }
}

pub(super) async fn run(command: TokensCommand, session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    match command {
        TokensCommand::Create { name, role, ttl } => {
            let role = role.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            let ttl_seconds = ttl.map_or(0, |span| span.0.as_secs());
            let mut fleet = connection.fleet();
            let answer =
                connection.write(fleet.create_token(v1::CreateTokenRequest { name, role, ttl_seconds })).await?;
            session.output.show(
                || record([("id", (&answer.id).into()), ("token", (&answer.token).into())]),
                || answer.token.clone(),
            )?;
            session.output.note(&format!("token {}; this is the only time that it is shown", answer.id));
        }
        TokensCommand::List => {
            let answer =
                connection.read(async || connection.fleet().list_tokens(v1::ListTokensRequest {}).await).await?;
            session.output.show(
                || record([("tokens", list(&answer.tokens, shape::fleet::token))]),
                || render::fleet::tokens(&answer.tokens, session.now()),
            )?;
        }
        TokensCommand::Revoke { id } => {
            let mut fleet = connection.fleet();
            connection.write(fleet.revoke_token(v1::RevokeTokenRequest { id: id.clone() })).await?;
            session.output.show(|| record([("revoked", (&id).into())]), || format!("token {id} revoked"))?;
        }
    }
    Ok(Exit::OK)
}

pub(super) async fn join(command: JoinTokenCommand, session: &Session) -> Result<Exit, CliError> {
    let JoinTokenCommand::Create { ttl, uses, labels } = command;
    let connection = session.connect()?;
    let mut fleet = connection.fleet();
    let request =
        v1::CreateJoinTokenRequest { ttl_seconds: ttl.0.as_secs(), uses, labels: labels.into_iter().collect() };
    let answer = connection.write(fleet.create_join_token(request)).await?;
    session.output.show(
        || record([("token", (&answer.token).into()), ("expires", moment(answer.expires_unix_ms))]),
        || answer.token.clone(),
    )?;
    session.output.note(&format!(
        "for {}, until {}\non that host: write it to the file that `join_token_file` in host.toml names, or start \
         devfleet-host with it in DEVFLEET_JOIN_TOKEN",
        if uses == 1 { "one host".to_owned() } else { format!("{uses} hosts") },
        Timestamp(answer.expires_unix_ms)
    ));
    Ok(Exit::OK)
}

pub(super) async fn whoami(session: &Session) -> Result<Exit, CliError> {
    let connection = session.connect()?;
    let answer = connection.read(async || connection.fleet().who_am_i(v1::WhoAmIRequest {}).await).await?;
    session.output.show(
        || {
            record([
                ("name", (&answer.name).into()),
                ("role", (&answer.role).into()),
                ("controller", connection.controller().into()),
            ])
        },
        || format!("{} ({}) at {}", answer.name, answer.role, connection.controller()),
    )?;
    Ok(Exit::OK)
}
