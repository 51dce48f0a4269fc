//! Very many hosts that join at once with one token.

use std::time::Duration;

use devfleet_controller::identity::{JoinTerms, Tokens};
use devfleet_shared::clock::Clock;
use devfleet_shared::id::{Digest, HostId};
use tokio::task::JoinSet;

use crate::jobs::Bench;
use crate::support::stores::Moody;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_hosts_that_join_at_once_at_one_controller_none_spoils_anothers_try() {
    let bench = Bench::new();
    let store = Moody::over(bench.store.clone());
    let tokens = Tokens::new(store.clone(), Clock::system());
    let terms = JoinTerms { uses: 300, ..JoinTerms::once(Duration::from_secs(600)) };
    let (text, _) = tokens.create_join(&terms, &Digest::of(b"ca")).await.expect("created");
    let before = store.commits();
    let mut joining = JoinSet::new();
    for number in 0..300_u32 {
        let (tokens, text) = (tokens.clone(), text.clone());
        let key = Digest::of(&number.to_be_bytes());
        joining.spawn(async move { tokens.redeem_join(text.expose(), &HostId::random(), &key).await });
    }
    for joined in joining.join_all().await {
        joined.expect("joined");
    }
    assert_eq!(store.commits() - before, 300, "a try for each");
}
