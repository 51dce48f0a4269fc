//! Tokens: what people show with each call, and what a host shows once, to join.
//!
//! A token's text is `<kind>_<id>_<secret>`: the id finds the record, the 256-bit secret proves it. Only the secret's
//! SHA-256 is stored (a random secret of that length needs no slow hash). `joining` has what is special about hosts.

mod joining;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{Digest, hex};
use devfleet_shared::secret::Secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use tokio::sync::Mutex;

use super::{Caller, IdentityError, Role};
use crate::store::{Change, Commit, Compare, Entry, Revision, SharedStore, StoreError, Transaction};

pub use joining::{JoinRefused, JoinTerms, Joined};

const PEOPLE: &str = "/devfleet/v1/tokens/";
/// How often a lost race is run again before the store is called unreachable.
const RACES: usize = 16;

/// The SHA-256 of a token's secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(Digest);

impl SecretHash {
    fn of(secret: &str) -> Self {
        Self(Digest::of(secret.as_bytes()))
    }

    /// Compares in constant time.
    fn matches(&self, secret: &str) -> bool {
        let other = Self::of(secret);
        self.0.as_str().as_bytes().ct_eq(other.0.as_str().as_bytes()).into()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hash]")
    }
}

/// A person's token, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Names the token in lists and for revocation.
    pub id: String,
    /// Whose it is, as the operator who made it wrote.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// Proves it.
    pub hash: SecretHash,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends; `None`: not by itself.
    pub expires: Option<Timestamp>,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

impl TokenRecord {
    fn is_live(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|expires| now < expires)
    }
}

/// Why a token does not say who calls.
#[derive(Debug, thiserror::Error)]
pub enum Unauthenticated {
    /// The text has not the form of a token.
    #[error(
        "this is not a devfleet token: it must read dft_<id>_<secret>, whole, as `devfleet tokens create` printed it"
    )]
    Malformed,
    /// No such token, or a wrong secret.
    #[error(
        "the token is not known here: check that it is for this controller, or ask an operator for a new one (`devfleet tokens create`)"
    )]
    Unknown,
    /// Its time is over.
    #[error("the token expired at {0}: ask an operator for a new one (`devfleet tokens create`)")]
    Expired(Timestamp),
    /// An operator revoked it.
    #[error("the token was revoked at {0}: ask an operator for a new one (`devfleet tokens create`)")]
    Revoked(Timestamp),
    /// The token could not be looked up.
    #[error("look up the token")]
    Unavailable(#[source] IdentityError),
}

impl Unauthenticated {
    /// Says whether the same token may do later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Unauthenticated::Unavailable(error) if error.is_retryable())
    }
}

/// All tokens.
#[derive(Clone)]
pub struct Tokens {
    store: SharedStore,
    clock: Clock,
    /// Whose turn it is to write a join token's record.
    joining: Arc<Mutex<()>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// Finds tokens in this store and judges their age by this clock.
    pub fn new(store: SharedStore, clock: Clock) -> Self {
        Self { store, clock, joining: Arc::default() }
    }

    /// Makes a token for a person and returns its record and its text, which is not kept.
    pub async fn create(
        &self,
        name: &str,
        role: Role,
        ttl: Option<Duration>,
    ) -> Result<(TokenRecord, Secret), IdentityError> {
        let name = name.trim();
        if name.is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control) {
            return Err(IdentityError::BadTokenName);
        }
        if ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(IdentityError::BadTtl("leave the time out for a token that does not end"));
        }
        let (id, secret) = (random_hex::<8>(), random_hex::<32>());
        let created = self.clock.now();
        let expires = ttl.map(|ttl| created.after(ttl));
        let record = TokenRecord {
            id: id.clone(),
            name: name.to_owned(),
            role,
            hash: SecretHash::of(&secret),
            created,
            expires,
            revoked: None,
        };
        self.put_new(format!("{PEOPLE}{id}"), &record).await?;
        Ok((record, Secret::new(format!("dft_{id}_{secret}"))))
    }

    /// Says who shows this token. Never [`Caller::Nobody`].
    pub async fn authenticate(&self, token: &str) -> Result<Caller, Unauthenticated> {
        let (id, secret) =
            split::<2>(token, "dft_").map(|[id, secret]| (id, secret)).ok_or(Unauthenticated::Malformed)?;
        let found = self.read::<TokenRecord>(&format!("{PEOPLE}{id}")).await.map_err(Unauthenticated::Unavailable)?;
        let (record, _) = found.filter(|(record, _)| record.hash.matches(secret)).ok_or(Unauthenticated::Unknown)?;
        match (record.revoked, record.expires) {
            (Some(revoked), _) => Err(Unauthenticated::Revoked(revoked)),
            (None, Some(expires)) if self.clock.now() >= expires => Err(Unauthenticated::Expired(expires)),
            _ => Ok(Caller::Person { name: record.name, role: record.role }),
        }
    }

    /// Returns all tokens of people, ordered by id; expired and revoked ones too.
    pub async fn list(&self) -> Result<Vec<TokenRecord>, IdentityError> {
        self.store.range(PEOPLE).await?.entries.iter().map(parse).collect()
    }

    /// Revokes a token; one that is revoked is already so.
    pub async fn revoke(&self, id: &str) -> Result<(), IdentityError> {
        let key = format!("{PEOPLE}{id}");
        for _ in 0..RACES {
            let Some((mut record, revision)) = self.read::<TokenRecord>(&key).await? else {
                return Err(IdentityError::NoSuchToken(id.to_owned()));
            };
            if record.revoked.is_some() {
                return Ok(());
            }
            record.revoked = Some(self.clock.now());
            if self.put(key.clone(), revision, &record).await? {
                return Ok(());
            }
        }
        Err(lost_races())
    }

    /// Says whether any token would be accepted now.
    pub async fn any(&self) -> Result<bool, IdentityError> {
        let now = self.clock.now();
        Ok(self.list().await?.iter().any(|record| record.is_live(now)))
    }

    async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, Revision)>, IdentityError> {
        let Some(entry) = self.store.get(key).await? else { return Ok(None) };
        Ok(Some((parse(&entry)?, entry.modified)))
    }

    async fn put_new<T: Serialize>(&self, key: String, record: &T) -> Result<(), IdentityError> {
        if self.put(key, 0, record).await? { Ok(()) } else { Err(lost_races()) }
    }

    /// Writes a record over the one that was read; false: the race is lost.
    async fn put<T: Serialize>(&self, key: String, read: Revision, record: &T) -> Result<bool, IdentityError> {
        let value = serde_json::to_vec(record).map_err(|source| IdentityError::Record { key: key.clone(), source })?;
        let when = vec![Compare::Modified(key.clone(), read)];
        let then = vec![Change::Put { key, value, lease: None }];
        Ok(matches!(self.store.commit(Transaction { when, then }).await?, Commit::Done(_)))
    }
}

fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T, IdentityError> {
    serde_json::from_slice(&entry.value).map_err(|source| IdentityError::Record { key: entry.key.clone(), source })
}

fn lost_races() -> IdentityError {
    IdentityError::Store(StoreError::Unavailable("the record changed under every try".into()))
}

/// Splits a token into its parts of hex digits.
fn split<'a, const PARTS: usize>(token: &'a str, kind: &str) -> Option<[&'a str; PARTS]> {
    let parts: Vec<&str> = token.strip_prefix(kind)?.split('_').collect();
    let is_hex =
        |part: &&str| !part.is_empty() && part.len() <= 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    if parts.iter().all(is_hex) { parts.try_into().ok() } else { None }
}

fn random_hex<const BYTES: usize>() -> String {
    hex(&rand::random::<[u8; BYTES]>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;

    pub(super) const START: Timestamp = Timestamp(1_800_000_000_000);
    pub(super) const HOUR: Duration = Duration::from_secs(3_600);

    pub(super) fn tokens() -> (tempfile::TempDir, SharedStore, Clock, Tokens) {
        let directory = tempfile::tempdir().expect("dir");
        let clock = Clock::fixed(START);
        let store: SharedStore = Embedded::open(&directory.path().join("store"), clock.clone()).expect("store");
        let tokens = Tokens::new(Arc::clone(&store), clock.clone());
        (directory, store, clock, tokens)
    }

    pub(super) fn altered(token: &Secret, part: usize) -> String {
        let mut parts: Vec<String> = token.expose().split('_').map(str::to_owned).collect();
        let first = if parts[part].starts_with('0') { "1" } else { "0" };
        parts[part].replace_range(..1, first);
        parts.join("_")
    }

    #[tokio::test]
    async fn a_token_says_who_calls_until_it_expires_or_is_revoked() {
        let (_directory, _store, clock, tokens) = tokens();
        assert!(!tokens.any().await.expect("any"));
        let (lasting, lasting_text) = tokens.create(" alice ", Role::Operator, None).await.expect("created");
        let (_, brief_text) = tokens.create("ci", Role::Submitter, Some(HOUR)).await.expect("created");
        let alice = Caller::Person { name: "alice".into(), role: Role::Operator };
        assert_eq!(tokens.authenticate(lasting_text.expose()).await.expect("known"), alice);
        let ci = Caller::Person { name: "ci".into(), role: Role::Submitter };
        assert_eq!(tokens.authenticate(brief_text.expose()).await.expect("known"), ci);
        assert_eq!(tokens.list().await.expect("list").len(), 2);

        clock.advance(HOUR);
        let expired = tokens.authenticate(brief_text.expose()).await.expect_err("expired");
        assert!(matches!(expired, Unauthenticated::Expired(at) if at == START.after(HOUR)), "{expired:?}");
        assert!(tokens.any().await.expect("any"));
        tokens.revoke(&lasting.id).await.expect("revoked");
        tokens.revoke(&lasting.id).await.expect("already so");
        let revoked = tokens.authenticate(lasting_text.expose()).await.expect_err("revoked");
        assert!(matches!(revoked, Unauthenticated::Revoked(_)), "{revoked:?}");
        assert!(!tokens.any().await.expect("any"));
        assert!(matches!(tokens.revoke("0000").await, Err(IdentityError::NoSuchToken(_))));
        for error in [expired, revoked] {
            assert!(error.to_string().contains("devfleet tokens create"), "{error}");
        }
    }

    #[tokio::test]
    async fn wrong_tokens_are_told_from_malformed_ones() {
        let (_directory, _store, _clock, tokens) = tokens();
        let (_, text) = tokens.create("alice", Role::Viewer, None).await.expect("created");
        let (join, _) = tokens.create_join(&JoinTerms::once(HOUR), &Digest::of(b"ca")).await.expect("created");
        for wrong in [altered(&text, 1), altered(&text, 2)] {
            let refused = tokens.authenticate(&wrong).await.expect_err("wrong");
            assert!(matches!(refused, Unauthenticated::Unknown), "{refused:?}");
        }
        let cut = &text.expose()[..20];
        for malformed in ["", "hello", cut, join.expose(), "dft__", "dft_../../x_ab", &format!("{}_00", text.expose())]
        {
            let refused = tokens.authenticate(malformed).await.expect_err("malformed");
            assert!(matches!(refused, Unauthenticated::Malformed), "{malformed:?}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn neither_debug_output_nor_the_store_holds_a_tokens_secret() {
        let (directory, store, _clock, tokens) = tokens();
        let (record, text) = tokens.create("alice", Role::Viewer, None).await.expect("created");
        let (join, _) = tokens.create_join(&JoinTerms::once(HOUR), &Digest::of(b"ca")).await.expect("created");
        let secret = |text: &Secret| text.expose().split('_').nth(2).expect("secret").to_owned();
        let shown = format!("{record:?} {text:?} {join:?} {tokens:?} {store:?}", store = store.range("").await);
        drop((tokens, store));
        let file = std::fs::read(directory.path().join("store")).expect("file");
        for secret in [secret(&text), secret(&join)] {
            assert_eq!(secret.len(), 64);
            assert!(!shown.contains(&secret));
            assert!(!file.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
        assert!(!format!("{record:?}").contains(record.hash.0.hex()));
    }

    #[tokio::test]
    async fn names_and_times_out_of_bounds_are_refused() {
        let (_directory, _store, _clock, tokens) = tokens();
        for name in ["", "  ", "a\nb", &"x".repeat(101)] {
            assert!(matches!(tokens.create(name, Role::Viewer, None).await, Err(IdentityError::BadTokenName)));
        }
        let zero = tokens.create("a", Role::Viewer, Some(Duration::ZERO)).await;
        assert!(matches!(zero, Err(IdentityError::BadTtl(_))));
    }
}
