//! Who this host is: a key that never leaves it, and a certificate that the controller issues and renews.
//!
//! A join token brings the fingerprint of the controller's authority, so the first connection already knows whom it
//! talks to. From then on every connection is mutual TLS under that one authority. Files, in `<data_dir>/identity`:
//! `host.key` (0600), `authority.pem`, `host-id` and, written last, `host.pem`: without it the host has not joined.

mod dial;
mod files;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use devfleet_proto::v1::fleet_client::FleetClient;
use devfleet_proto::v1::{JoinRequest, RenewCertificateRequest};
use devfleet_shared::clock::Timestamp;
use devfleet_shared::endpoints::Endpoints;
use devfleet_shared::id::{Digest, HostId, InvalidId};
use devfleet_shared::secret::Secret;
use devfleet_shared::tls::{self, TlsError};
use rustls::ClientConfig;
use tonic::transport::Channel;

use files::Files;

/// Why something about the host's identity failed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{operation} {}", .path.display())]
    File {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The key can be read by others.
    #[error("use {}: other users of this machine may read it; run `chmod 600` on it, or move the directory away and join again", .path.display())]
    ExposedKey {
        /// The file.
        path: PathBuf,
    },
    /// This host has an identity.
    #[error("join: this host has joined already; move {} away first if it is to join anew", .directory.display())]
    AlreadyJoined {
        /// The directory.
        directory: PathBuf,
    },
    /// The text is no join token.
    #[error(
        "read the join token: it must read dfj_<id>_<secret>_<authority>, whole, as `devfleet join-token create` printed it"
    )]
    MalformedToken,
    /// The controller's address is not usable.
    #[error("use the controller's address {url:?}: write https://HOST:PORT")]
    BadUrl {
        /// The address.
        url: String,
    },
    /// The controller cannot be reached, or is not the one that the token was made for.
    #[error("connect to the controller at {url}")]
    Connect {
        /// The address.
        url: String,
        /// The cause.
        #[source]
        source: tonic::transport::Error,
    },
    /// The controller refuses.
    #[error("get a certificate from the controller: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// What the controller answers does not fit what was asked for.
    #[error("use the controller's answer: {0}")]
    BadAnswer(&'static str),
    /// The controller's name for the host is not an id.
    #[error("use the host id")]
    BadHostId(#[source] InvalidId),
    /// The certificate ended before it was renewed.
    #[error("renew the certificate: it ended at {ended}; move {} away and join again with a new token (`devfleet join-token create`)", .directory.display())]
    Expired {
        /// When it ended.
        ended: Timestamp,
        /// The directory.
        directory: PathBuf,
    },
    /// Keys or certificates cannot be made or read.
    #[error("use keys and certificates")]
    Tls(#[from] TlsError),
}

impl IdentityError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        use tonic::Code;
        match self {
            IdentityError::Connect { source, .. } => !names_another_authority(source),
            IdentityError::Refused(status) => {
                matches!(
                    status.code(),
                    Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted
                )
            }
            _ => false,
        }
    }
}

fn names_another_authority(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<tls::AuthorityNotPinned>() {
            return true;
        }
        // `io::Error` and rustls' wrapper hide what they hold from `source()`.
        let held = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        cause = match (held, error.downcast_ref::<rustls::Error>()) {
            (Some(held), _) => Some(held as &(dyn std::error::Error + 'static)),
            (None, Some(rustls::Error::Other(other))) => Some(other.0.as_ref()),
            (None, _) => error.source(),
        };
    }
    false
}

/// The host's identity; clones share it, and see it renewed.
#[derive(Clone)]
pub struct HostIdentity {
    host: HostId,
    files: Files,
    key_pem: Secret,
    current: Arc<RwLock<Current>>,
}

/// What a renewal replaces.
struct Current {
    config: Arc<ClientConfig>,
    ends: Timestamp,
    renew_from: Timestamp,
}

impl fmt::Debug for HostIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostIdentity").field("host", &self.host).field("ends", &self.ends()).finish_non_exhaustive()
    }
}

impl HostIdentity {
    /// Reads the identity from its directory; `None` if this host has not joined.
    pub fn load(directory: &Path) -> Result<Option<HostIdentity>, IdentityError> {
        let files = Files::new(directory);
        let Some(certificate_pem) = files.certificate()? else { return Ok(None) };
        let host = files.host_id()?.parse().map_err(IdentityError::BadHostId)?;
        let (key_pem, authority_pem) = (files.key()?, files.authority()?);
        let current = Current::new(&authority_pem, &certificate_pem, &key_pem)?;
        Ok(Some(HostIdentity { host, files, key_pem, current: Arc::new(RwLock::new(current)) }))
    }

    /// Joins a fleet: makes a key, has it certified, and writes the identity to its directory.
    ///
    /// Talks to nobody but the controller that the token was made for. Safe to repeat with the same directory and token: the
    /// key of a try whose answer was lost is taken up again, so the controller knows the host and the token is not spent twice.
    pub async fn join(
        directory: &Path,
        controller_url: &str,
        join_token: &Secret,
        name: &str,
    ) -> Result<HostIdentity, IdentityError> {
        let pin = pinned_authority(join_token).ok_or(IdentityError::MalformedToken)?;
        let files = Files::new(directory);
        if files.certificate()?.is_some() {
            return Err(IdentityError::AlreadyJoined { directory: directory.to_owned() });
        }
        let (key_pem, signing_request) = match files.earlier_key()? {
            Some(key_pem) => (key_pem.clone(), tls::signing_request_for(&key_pem)?),
            None => {
                let made = tls::signing_request()?;
                // Before the token is spent: a directory that cannot be written should not cost one.
                files.write_key(&made.key_pem)?;
                (made.key_pem, made.request_pem)
            }
        };
        let config = Arc::new(tls::pinned_client(&pin)?);
        let channel = devfleet_proto::dial::connect(controller_url, move || Arc::clone(&config)).await?;
        let request = JoinRequest { token: join_token.expose().to_owned(), signing_request, name: name.to_owned() };
        let answer = FleetClient::new(channel).join(dial::with_deadline(request)).await.map_err(refused)?.into_inner();
        if tls::fingerprint(&answer.authority)? != pin {
            return Err(IdentityError::BadAnswer("it names another authority than the join token"));
        }
        let host: HostId = answer.host_id.parse().map_err(IdentityError::BadHostId)?;
        let current = Current::new(&answer.authority, &answer.certificate, &key_pem)?;
        files.write_authority(&answer.authority)?;
        files.write_host_id(host.as_str())?;
        files.write_certificate(&answer.certificate)?;
        Ok(HostIdentity { host, files, key_pem, current: Arc::new(RwLock::new(current)) })
    }

    /// Has the certificate renewed if 50 to 80 % of its life (at random, so that a fleet does not come all at once) are
    /// over; says whether it did. Fails without a try if the certificate has ended.
    ///
    /// Connections made from then on show the new certificate; standing ones stay.
    pub async fn renew_if_due(&self, controller_url: &str, now: Timestamp) -> Result<bool, IdentityError> {
        let (ends, renew_from) = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            (current.ends, current.renew_from)
        };
        if now >= ends {
            let directory = self.files.directory().to_owned();
            return Err(IdentityError::Expired { ended: ends, directory });
        }
        if now < renew_from {
            return Ok(false);
        }
        let signing_request = tls::signing_request_for(&self.key_pem)?;
        let request = dial::with_deadline(RenewCertificateRequest { signing_request });
        let answer = FleetClient::new(self.channel(controller_url)?)
            .renew_certificate(request)
            .await
            .map_err(refused)?
            .into_inner();
        let authority_pem = self.files.authority()?;
        // The authority is not taken from the answer: trust begins with a join token only.
        let fresh = Current::new(&authority_pem, &answer.certificate, &self.key_pem)?;
        self.files.write_certificate(&answer.certificate)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(true)
    }

    /// Makes a channel to the controller under mutual TLS. It connects at the first call and again when it broke.
    pub fn channel(&self, controller_url: &str) -> Result<Channel, IdentityError> {
        let bad = || IdentityError::BadUrl { url: controller_url.to_owned() };
        self.channel_to(Arc::new(Endpoints::new(vec![controller_url.to_owned()]).ok_or_else(bad)?))
    }

    /// Makes such a channel to whichever of these controllers answers, and goes to the next when it is away.
    pub fn channel_to(&self, endpoints: Arc<Endpoints>) -> Result<Channel, IdentityError> {
        let current = Arc::clone(&self.current);
        let config = move || Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner).config);
        Ok(devfleet_proto::dial::lazily(endpoints, config)?)
    }

    /// Sets the identity of a host that was removed aside, so that it can join anew. Returns where it is now.
    pub fn set_aside(directory: &Path) -> Result<PathBuf, IdentityError> {
        let host = Files::new(directory).host_id()?;
        let aside = directory.with_file_name(format!("identity-removed-{host}"));
        let failed = |source| IdentityError::File { operation: "set aside", path: directory.to_owned(), source };
        std::fs::rename(directory, &aside).map_err(failed)?;
        Ok(aside)
    }

    /// Returns the host's id.
    pub fn host(&self) -> &HostId {
        &self.host
    }

    /// Returns when the certificate ends.
    pub fn ends(&self) -> Timestamp {
        self.current.read().unwrap_or_else(PoisonError::into_inner).ends
    }
}

impl Current {
    /// Makes TLS settings; fails if the key is not the certificate's.
    fn new(authority_pem: &str, certificate_pem: &str, key_pem: &Secret) -> Result<Current, IdentityError> {
        let config = Arc::new(tls::client(authority_pem, Some((certificate_pem, key_pem)))?);
        let (begins, ends) = tls::validity(&tls::certificates(certificate_pem, "host certificate")?[0])?;
        Ok(Current { config, ends, renew_from: renew_from(begins, ends, rand::random()) })
    }
}

/// Returns from when on a certificate is to be renewed: between 50 and 80 % of its life, by `chance` in 0..1.
fn renew_from(begins: Timestamp, ends: Timestamp, chance: f64) -> Timestamp {
    begins.after(ends.since(begins).mul_f64(0.5 + 0.3 * chance.clamp(0.0, 1.0)))
}

/// Returns the authority's fingerprint, the last part of a join token.
fn pinned_authority(token: &Secret) -> Option<Digest> {
    let mut parts = token.expose().strip_prefix("dfj_")?.split('_');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(_), Some(authority), None) => format!("sha256:{authority}").parse().ok(),
        _ => None,
    }
}

fn refused(status: tonic::Status) -> IdentityError {
    IdentityError::Refused(Box::new(status))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn renewal_is_due_between_half_and_four_fifths_of_a_certificates_life() {
        let (begins, ends) = (Timestamp(0), Timestamp(100_000));
        for (chance, due) in [(0.0, 50_000), (0.5, 65_000), (1.0, 80_000)] {
            assert_eq!(renew_from(begins, ends, chance), Timestamp(due));
        }
        assert_eq!(renew_from(begins, begins.after(Duration::ZERO), 0.5), begins);
    }

    #[test]
    fn a_join_token_names_its_authority_or_is_refused() {
        let pin = Digest::of(b"authority");
        let token = |text: String| Secret::new(text);
        assert_eq!(pinned_authority(&token(format!("dfj_ab_cd_{}", pin.hex()))), Some(pin.clone()));
        for text in [
            "",
            "dfj_",
            "dfj_ab_cd",
            "dfj_ab_cd_ef",
            &format!("dft_ab_cd_{}", pin.hex()),
            &format!("dfj_ab_cd_{}_", pin.hex()),
        ] {
            assert_eq!(pinned_authority(&token(text.to_owned())), None, "{text:?}");
        }
    }

    #[test]
    fn a_host_that_has_not_joined_has_no_identity() {
        let directory = tempfile::tempdir().expect("dir");
        assert!(HostIdentity::load(directory.path()).expect("load").is_none());
        assert!(HostIdentity::load(&directory.path().join("absent")).expect("load").is_none());
    }
}
