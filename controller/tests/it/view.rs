//! What the view knows of the store, whatever becomes of its watch.

use std::time::Duration;

use devfleet_controller::store::SharedStore;
use devfleet_controller::view::View;
use tokio_util::sync::CancellationToken;

use crate::jobs::Bench;
use crate::support::stores::{Mood, Moody};

#[tokio::test]
async fn a_watch_that_breaks_between_two_changes_of_one_revision_loses_neither() {
    let bench = Bench::new();
    let store = Moody::over(bench.store.clone());
    let shared: SharedStore = store.clone();
    let view = View::open(&shared).await.expect("a view");
    store.set(Mood::BreaksOnce);
    let end = CancellationToken::new();
    let following = tokio::spawn(view.clone().follow(shared, end.clone()));
    // What it is and where it stands are written at once.
    let job = bench.submitted().await;
    let seen = view.until(|records| records.job(&job));
    tokio::time::timeout(Duration::from_secs(10), seen).await.expect("both are seen");
    assert_eq!(store.mood(), Mood::Honest, "the watch broke");
    end.cancel();
    following.await.expect("no panic");
}
