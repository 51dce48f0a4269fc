//! The yardstick: a bare etcd client that does as many transactions of the same kind, with nothing around them.

use std::time::Duration;

use anyhow::Context as _;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use futures_util::StreamExt as _;
use tokio::time::Instant;

/// As many bytes as the state of a job takes.
const VALUE_BYTES: usize = 900;

/// Runs transactions that each compare and write two keys, as moving a job does, this many side by side. Returns how long it
/// took.
pub(crate) async fn run(endpoint: &str, transactions: usize, at_once: usize) -> anyhow::Result<Duration> {
    let client = Client::connect([endpoint], None).await.context("reach etcd")?;
    let begin = Instant::now();
    let work = futures_util::stream::iter(0..transactions).map(|number| {
        let mut client = client.clone();
        async move {
            let (state, owner) = (format!("/bare/state/{number}"), format!("/bare/owner/{number}"));
            let value = vec![b'x'; VALUE_BYTES];
            let transaction = Txn::new()
                .when([
                    Compare::mod_revision(state.clone(), CompareOp::Equal, 0),
                    Compare::mod_revision(owner.clone(), CompareOp::Equal, 0),
                ])
                .and_then([TxnOp::put(state, value, None), TxnOp::put(owner, "host", None)]);
            anyhow::Ok(client.txn(transaction).await.context("a bare transaction")?.succeeded())
        }
    });
    let done: Vec<anyhow::Result<bool>> = work.buffer_unordered(at_once).collect().await;
    for done in done {
        anyhow::ensure!(done?, "a bare transaction met a key that should not be there");
    }
    Ok(begin.elapsed())
}
