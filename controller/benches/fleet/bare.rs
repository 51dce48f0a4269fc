//! The yardstick: etcd's own client, writing the very same records under keys of its own, with the same conditions, in as
//! many transactions and as many at once, and nothing else.

use std::time::Duration;

use anyhow::Context as _;
use devfleet_controller::store::records::PREFIX;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;

use crate::ground::Ground;

/// The transactions that the controller has under way at once.
const UNDER_WAY: usize = 8;

/// The records of one placement: owner and state.
pub(crate) type Placed = [(String, Vec<u8>); 2];

/// Reads what the controllers wrote for these jobs.
pub(crate) async fn records(ground: &Ground, jobs: impl Iterator<Item = &String>) -> anyhow::Result<Vec<Placed>> {
    let read = async |key: String| {
        let entry = ground.store.get(&format!("{PREFIX}{key}")).await?.with_context(|| format!("{key} is gone"))?;
        anyhow::Ok((key, entry.value))
    };
    let read = &read;
    try_join_all(
        jobs.map(
            |job| async move { Ok([read(format!("owners/{job}")).await?, read(format!("jobs/{job}/state")).await?]) },
        ),
    )
    .await
}

/// Writes them, so many to a transaction, and returns how long that took.
pub(crate) async fn write(
    ground: &Ground,
    round: &str,
    placed: &[Placed],
    together: usize,
) -> anyhow::Result<Duration> {
    let client = Client::connect([&ground.endpoint], None).await.context("connect to etcd")?;
    let transactions: Vec<Txn> = placed.chunks(together.max(1)).map(|lot| transaction(round, lot)).collect();
    let begun = Instant::now();
    let commits = transactions.into_iter().map(|transaction| {
        let mut client = client.kv_client();
        async move { client.txn(transaction).await }
    });
    let answers: Vec<_> = futures_util::stream::iter(commits).buffer_unordered(UNDER_WAY).try_collect().await?;
    anyhow::ensure!(answers.iter().all(etcd_client::TxnResponse::succeeded), "a bare transaction was refused");
    Ok(begun.elapsed())
}

fn transaction(round: &str, lot: &[Placed]) -> Txn {
    let key = |name: &str| format!("/bare/{round}/{name}");
    let records = || lot.iter().flatten();
    // As a placement: both records as they were seen, and the host as it was seen.
    let absent = |name: String| Compare::mod_revision(name, CompareOp::Equal, 0);
    let hosts = lot.iter().map(|[owner, _]| absent(format!("{}/host", key(&owner.0))));
    let when: Vec<Compare> = records().map(|(name, _)| absent(key(name))).chain(hosts).collect();
    let then: Vec<TxnOp> = records().map(|(name, value)| TxnOp::put(key(name), value.clone(), None)).collect();
    Txn::new().when(when).and_then(then)
}
