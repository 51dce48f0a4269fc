//! Join tokens: what a host shows to become part of the fleet.
//!
//! A join token carries the fingerprint of the authority, so that the host knows whom it joins; how many hosts it lets
//! in is counted by compare-and-swap. A host is known by its key: one that asks again with the same key, because the
//! answer was lost, gets the same identity and costs nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use devfleet_shared::backoff::Backoff;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::id::{Digest, HostId};
use devfleet_shared::secret::Secret;
use serde::{Deserialize, Serialize};

use super::{SecretHash, Tokens, lost_races, parse, random_hex, split};
use crate::identity::IdentityError;
use crate::store::{Change, Transaction};

const JOINING: &str = "/devfleet/v1/join-tokens/";
const TTL_MAX: Duration = Duration::from_secs(24 * 3_600);
/// How many hosts one token may let in.
const USES_MAX: u32 = 1_000;
/// How many labels a token may give, and how long a key or a value may be.
const LABELS_MAX: usize = 32;
const LABEL_CHARS: usize = 63;
/// Spent join tokens are remembered this long, to say why they do not work.
const MEMORY: Duration = Duration::from_secs(24 * 3_600);
/// How long a host may have to wait for its turn and for the store.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pace of tries that other controllers were quicker at.
const PACE: Backoff = Backoff { first: Duration::from_millis(5), ceiling: Duration::from_millis(250) };

/// What a join token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTerms {
    /// How long; 24 hours at most.
    pub ttl: Duration,
    /// How many hosts it lets in; 1,000 at most.
    pub uses: u32,
    /// Labels that these hosts get.
    pub labels: BTreeMap<String, String>,
}

impl JoinTerms {
    /// One host, no labels.
    pub fn once(ttl: Duration) -> Self {
        Self { ttl, uses: 1, labels: BTreeMap::new() }
    }

    fn check(&self) -> Result<(), IdentityError> {
        if self.ttl.is_zero() || self.ttl > TTL_MAX {
            return Err(IdentityError::BadTtl("a join token lives from 1 second to 24 hours"));
        }
        if !(1..=USES_MAX).contains(&self.uses) {
            return Err(IdentityError::BadJoinTerms("a join token lets in from 1 to 1000 hosts"));
        }
        if self.labels.len() > LABELS_MAX {
            return Err(IdentityError::BadJoinTerms("a join token gives 32 labels at most"));
        }
        if self.labels.iter().any(|(name, value)| !is_label(name) || !(value.is_empty() || is_label(value))) {
            return Err(IdentityError::BadJoinTerms(
                "a label is NAME=VALUE, each of at most 63 letters, digits, `.`, `_`, `-` and `/`",
            ));
        }
        Ok(())
    }
}

/// Says whether a text can be the name or the value of a host's label.
fn is_label(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    (1..=LABEL_CHARS).contains(&text.len()) && text.chars().all(allowed)
}

/// A join token, as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinRecord {
    hash: SecretHash,
    expires: Timestamp,
    uses: u32,
    labels: BTreeMap<String, String>,
    used: Vec<Use>,
}

/// A host that joined with the token, and the digest of its public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Use {
    host: HostId,
    key: Digest,
}

/// Who a joining host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its id: the proposed one, or the one that it got the first time.
    pub host: HostId,
    /// Labels that the token gives.
    pub labels: BTreeMap<String, String>,
}

/// Why a host may not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinRefused {
    /// The text is no join token, or none of ours.
    #[error("the join token is wrong: copy it whole, or make a new one with `devfleet join-token create`")]
    Wrong,
    /// Its time is over.
    #[error("the join token expired at {0}: make a new one with `devfleet join-token create`")]
    Expired(Timestamp),
    /// As many hosts as it lets in have joined with it.
    #[error(
        "the join token was already used by host {0}: it is good for no more; make a new one with `devfleet join-token create`"
    )]
    Used(HostId),
    /// The token could not be looked up or used up.
    #[error("look up the join token")]
    Unavailable(#[source] IdentityError),
}

impl JoinRefused {
    /// Says whether the same token may do later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, JoinRefused::Unavailable(error) if error.is_retryable())
    }
}

impl Tokens {
    /// Makes a join token and returns its text, which is not kept, and its end.
    pub async fn create_join(
        &self,
        terms: &JoinTerms,
        authority: &Digest,
    ) -> Result<(Secret, Timestamp), IdentityError> {
        terms.check()?;
        self.forget_spent().await?;
        let (id, secret) = (random_hex::<8>(), random_hex::<32>());
        let expires = self.clock.now().after(terms.ttl);
        let record = JoinRecord {
            hash: SecretHash::of(&secret),
            expires,
            uses: terms.uses,
            labels: terms.labels.clone(),
            used: Vec::new(),
        };
        self.put_new(format!("{JOINING}{id}"), &record).await?;
        Ok((Secret::new(format!("dfj_{id}_{secret}_{}", authority.hex())), expires))
    }

    /// Uses a join token for the host with this public key: of any number of tries as many keys as it has uses go
    /// through. A key that went through before goes through again, as the host that it became then.
    ///
    /// However many join at once: of those who ask this controller each waits for its turn, since all of them write one
    /// record, and against those who ask another controller it tries again after a pause by chance.
    pub async fn redeem_join(&self, token: &str, proposed: &HostId, key: &Digest) -> Result<Joined, JoinRefused> {
        let [id, secret, _] = split::<3>(token, "dfj_").ok_or(JoinRefused::Wrong)?;
        let place = format!("{JOINING}{id}");
        let host = Use { host: proposed.clone(), key: key.clone() };
        let redeeming = async {
            let _turn = self.joining.lock().await;
            let mut lost = 0;
            loop {
                if let Some(joined) = self.try_join(&place, secret, &host).await? {
                    return Ok(joined);
                }
                lost += 1;
                tokio::time::sleep(PACE.pause(lost, Backoff::jitter())).await;
            }
        };
        let patience = tokio::time::timeout(PATIENCE, redeeming);
        patience.await.unwrap_or_else(|_| Err(JoinRefused::Unavailable(lost_races())))
    }

    /// Notes a host's use in the token's record. `None`: the record changed meanwhile.
    async fn try_join(&self, place: &str, secret: &str, host: &Use) -> Result<Option<Joined>, JoinRefused> {
        let found = self.read::<JoinRecord>(place).await.map_err(JoinRefused::Unavailable)?;
        let Some((mut record, revision)) = found.filter(|(record, _)| record.hash.matches(secret)) else {
            return Err(JoinRefused::Wrong);
        };
        let expired = self.clock.now() >= record.expires;
        if let Some(before) = record.used.iter().find(|before| before.key == host.key)
            && !expired
        {
            return Ok(Some(Joined { host: before.host.clone(), labels: record.labels }));
        }
        if let Some(last) = record.used.last()
            && record.used.len() >= record.uses as usize
        {
            return Err(JoinRefused::Used(last.host.clone()));
        }
        if expired {
            return Err(JoinRefused::Expired(record.expires));
        }
        record.used.push(host.clone());
        let written = self.put(place.to_owned(), revision, &record).await.map_err(JoinRefused::Unavailable)?;
        Ok(written.then(|| Joined { host: host.host.clone(), labels: record.labels }))
    }

    async fn forget_spent(&self) -> Result<(), IdentityError> {
        let now = self.clock.now();
        for entry in self.store.range(JOINING).await?.entries {
            if parse::<JoinRecord>(&entry)?.expires.after(MEMORY) < now {
                let then = vec![Change::Delete(entry.key)];
                self.store.commit(Transaction { when: Vec::new(), then }).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HOUR, START, altered, tokens};
    use super::*;

    fn key(number: usize) -> Digest {
        Digest::of(number.to_string().as_bytes())
    }

    async fn race(tokens: &Tokens, text: &Secret) -> Vec<Result<HostId, JoinRefused>> {
        let mut racers = tokio::task::JoinSet::new();
        for number in 0..16 {
            let (tokens, text) = (tokens.clone(), text.clone());
            racers.spawn(async move {
                let host = HostId::random();
                tokens.redeem_join(text.expose(), &host, &key(number)).await.map(|joined| joined.host)
            });
        }
        racers.join_all().await
    }

    #[tokio::test]
    async fn a_join_token_lets_in_exactly_as_many_hosts_as_it_says() {
        let (_directory, _store, clock, tokens) = tokens();
        let authority = Digest::of(b"ca");
        for uses in [1, 3] {
            let terms = JoinTerms { uses, ..JoinTerms::once(HOUR) };
            let (text, expires) = tokens.create_join(&terms, &authority).await.expect("created");
            assert_eq!(expires, START.after(HOUR));
            assert!(text.expose().starts_with("dfj_") && text.expose().ends_with(authority.hex()));
            for wrong in [altered(&text, 1), altered(&text, 2), "dfj_".to_owned(), "hello".to_owned()] {
                let refused = tokens.redeem_join(&wrong, &HostId::random(), &key(0)).await.expect_err("wrong");
                assert!(matches!(refused, JoinRefused::Wrong), "{refused:?}");
            }
            let (joined, refused): (Vec<_>, Vec<_>) = race(&tokens, &text).await.into_iter().partition(Result::is_ok);
            assert_eq!(joined.len(), uses as usize);
            let joined: Vec<HostId> = joined.into_iter().map(|host| host.expect("joined")).collect();
            for refused in refused {
                let refused = refused.expect_err("refused");
                assert!(matches!(&refused, JoinRefused::Used(host) if joined.contains(host)), "{refused:?}");
                assert!(refused.to_string().contains("devfleet join-token create"));
            }
        }
        let (late, expires) = tokens.create_join(&JoinTerms::once(HOUR), &authority).await.expect("created");
        clock.advance(HOUR);
        let refused = tokens.redeem_join(late.expose(), &HostId::random(), &key(0)).await.expect_err("expired");
        assert!(matches!(refused, JoinRefused::Expired(at) if at == expires), "{refused:?}");
    }

    /// As many controllers as hosts: nobody waits for a turn, every race is run in the store.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_hosts_that_join_at_once_at_as_many_controllers_all_get_in() {
        let (_directory, store, clock, tokens) = tokens();
        let terms = JoinTerms { uses: 32, ..JoinTerms::once(HOUR) };
        let (text, _) = tokens.create_join(&terms, &Digest::of(b"ca")).await.expect("created");
        let mut racers = tokio::task::JoinSet::new();
        for number in 0..32 {
            let (tokens, text) = (Tokens::new(store.clone(), clock.clone()), text.clone());
            racers.spawn(async move { tokens.redeem_join(text.expose(), &HostId::random(), &key(number)).await });
        }
        for joined in racers.join_all().await {
            joined.expect("joined");
        }
        let late = tokens.redeem_join(text.expose(), &HostId::random(), &key(32)).await.expect_err("used up");
        assert!(matches!(late, JoinRefused::Used(_)), "{late:?}");
    }

    #[tokio::test]
    async fn the_same_key_is_the_same_host_until_the_token_expires() {
        let (_directory, _store, clock, tokens) = tokens();
        let labels = BTreeMap::from([("zone".to_owned(), "eu".to_owned())]);
        let terms = JoinTerms { labels: labels.clone(), ..JoinTerms::once(HOUR) };
        let (text, _) = tokens.create_join(&terms, &Digest::of(b"ca")).await.expect("created");
        let (first, second) = (HostId::random(), HostId::random());
        let expected = Joined { host: first.clone(), labels };
        assert_eq!(tokens.redeem_join(text.expose(), &first, &key(1)).await.expect("joined"), expected);
        assert_eq!(tokens.redeem_join(text.expose(), &second, &key(1)).await.expect("the same"), expected);
        let other = tokens.redeem_join(text.expose(), &second, &key(2)).await.expect_err("another key");
        assert!(matches!(other, JoinRefused::Used(host) if host == first));
        clock.advance(HOUR);
        let late = tokens.redeem_join(text.expose(), &second, &key(1)).await.expect_err("expired");
        assert!(matches!(late, JoinRefused::Used(_)), "{late:?}");
    }

    #[tokio::test]
    async fn spent_join_tokens_are_remembered_for_a_day_and_then_forgotten() {
        let (_directory, store, clock, tokens) = tokens();
        let (authority, once) = (Digest::of(b"ca"), JoinTerms::once(HOUR));
        tokens.create_join(&once, &authority).await.expect("created");
        for (passed, left) in [(MEMORY, 2), (HOUR + Duration::from_secs(1), 2)] {
            clock.advance(passed);
            tokens.create_join(&once, &authority).await.expect("created");
            assert_eq!(store.range(JOINING).await.expect("range").entries.len(), left);
        }
    }

    #[tokio::test]
    async fn terms_out_of_bounds_are_refused() {
        let (_directory, store, _clock, tokens) = tokens();
        let label = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let once = JoinTerms::once(HOUR);
        for terms in [
            JoinTerms::once(Duration::ZERO),
            JoinTerms::once(TTL_MAX + HOUR),
            JoinTerms { uses: 0, ..once.clone() },
            JoinTerms { uses: USES_MAX + 1, ..once.clone() },
            JoinTerms { labels: label("", "eu"), ..once.clone() },
            JoinTerms { labels: label("zone", "e u"), ..once.clone() },
            JoinTerms { labels: label(&"x".repeat(64), ""), ..once.clone() },
        ] {
            let refused = tokens.create_join(&terms, &Digest::of(b"")).await.expect_err("refused");
            assert!(matches!(refused, IdentityError::BadTtl(_) | IdentityError::BadJoinTerms(_)), "{refused:?}");
        }
        assert!(store.range(JOINING).await.expect("range").entries.is_empty());
    }
}
