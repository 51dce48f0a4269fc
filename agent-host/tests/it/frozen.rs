//! Freezing on real Docker: no way out meanwhile, and everything as it was afterwards, open connections too.

use std::sync::Arc;
use std::time::Duration;

use devfleet_host::engine::memory::Script;
use devfleet_host::engine::{ContainerSpec, FoundObject};
use devfleet_host::freeze::{Hand, Stance};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::engine_contract::{Bench, check};
use crate::world::until_real;

const PYTHON: &str = "devfleet-test/python:3.11";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

async fn found(bench: &Bench, role: &str) -> Option<FoundObject> {
    let found = bench.engine.containers(&bench.labels()).await.expect("a list");
    found.into_iter().find(|found| found.object.name == bench.name(role))
}

async fn is_paused(bench: &Bench, role: &str) -> bool {
    found(bench, role).await.is_some_and(|found| found.paused)
}

async fn running(bench: &Bench) -> Vec<FoundObject> {
    let found = bench.engine.containers(&bench.labels()).await.expect("a list");
    found.into_iter().filter(|found| found.in_use).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_frozen_has_no_way_out_and_comes_back_as_it_was() {
    check(Bench::docker(&[PYTHON]).await, async |bench| {
        let notes = tempfile::tempdir().expect("a directory");
        let hand = Hand { engine: Arc::clone(&bench.engine), host: bench.host.clone(), notes: notes.path().to_owned() };
        let network = bench.network("network");
        bench.engine.ensure_network(&network).await.expect("a network");
        let place = |spec: ContainerSpec| ContainerSpec {
            image: PYTHON.into(),
            network: Some(network.name.clone()),
            aliases: vec!["web".into()],
            ..spec
        };
        let server = place(bench.container("server", "cd /etc && exec python3 -m http.server 8000", Script::runs()));
        bench.run(&server).await;
        let links = bench.engine.links(&server.name).await.expect("its links");
        let [link] = links.as_slice() else { panic!("{links:?}") };
        assert!(link.network == network.name && link.aliases.contains(&"web".to_owned()), "{link:?}");
        let address = (link.address, 8000);
        until_real("the server answers", async || TcpStream::connect(address).await.is_ok()).await;
        let mut open = TcpStream::connect(address).await.expect("a connection");
        open.write_all(b"GET /hostname HTTP/1.0\r\n").await.expect("half a request");

        for round in 0..2 {
            // Twice: what is so already stays so.
            assert!(hand.treat(Stance::Freeze, &running(&bench).await).await, "round {round}");
            assert!(is_paused(&bench, "server").await);
            assert_eq!(bench.engine.links(&server.name).await.expect("its links"), []);
        }
        let out = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(address)).await;
        assert!(!matches!(out, Ok(Ok(_))), "it can still be reached");

        for _ in 0..2 {
            assert!(hand.treat(Stance::Run, &running(&bench).await).await);
            assert!(!is_paused(&bench, "server").await);
        }
        let back = bench.engine.links(&server.name).await.expect("its links");
        assert_eq!(back[0].address, link.address);
        open.write_all(b"\r\n").await.expect("the other half");
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, open.read_to_string(&mut answer)).await;
        read.expect("the connection lives on").expect("an answer");
        assert!(answer.contains("200 OK"), "{answer}");

        let ask = "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://web:8000/hostname\").status)'";
        let client = ContainerSpec { aliases: Vec::new(), ..place(bench.container("client", ask, Script::runs())) };
        bench.run(&client).await;
        assert_eq!(
            bench.engine.wait(&client.name).await.expect("its end").status,
            0,
            "the alias is not known any more"
        );

        hand.treat(Stance::Kill, &running(&bench).await).await;
        assert_eq!(found(&bench, "server").await, None);
        hand.forget_all_but(&[]);
        assert_eq!(std::fs::read_dir(notes.path()).expect("read").count(), 0, "its note is gone with it");
    })
    .await;
}
