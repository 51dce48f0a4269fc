//! The network of an environment, with addresses from the host's own pool.
//!
//! Docker's own pools end at about thirty networks and may clash with networks that people use; so a host plans its
//! addresses itself: one /28 each (13 containers), 4,096 of them in a /16.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use super::{Devbox, EnvironmentError};
use crate::engine::{EngineError, NetworkSpec, ObjectKind};

/// The prefix length of one environment's network.
const PREFIX: u32 = 28;
/// The addresses in it.
const SIZE: u32 = 1 << (32 - PREFIX);
/// The role of the network in names and labels.
const ROLE: &str = "network";
/// How often other addresses are tried when someone else takes the chosen ones first.
const TRIES: u32 = 16;

/// A text that is no usable pool of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("use {text:?} as a pool of network addresses: write an IPv4 network of /8 to /28, such as 10.213.0.0/16")]
pub struct InvalidPool {
    text: String,
}

/// Addresses for the networks of this host's environments.
#[derive(Debug)]
pub struct SubnetPool {
    text: String,
    range: Range,
    /// Handed out, and not yet to be seen in the engine's list.
    given: Mutex<BTreeSet<u32>>,
}

/// The addresses from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    last: u32,
}

impl Range {
    /// Reads `10.213.0.0/16`; anything else, IPv6 for one, is nothing we could clash with.
    fn parse(text: &str) -> Option<(Range, u32)> {
        let (address, prefix) = text.split_once('/')?;
        let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
        let prefix = prefix.parse::<u32>().ok().filter(|prefix| *prefix <= 32)?;
        let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
        Some((Range { first: address & mask, last: address | !mask }, prefix))
    }

    fn overlaps(self, other: Range) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for SubnetPool {
    type Err = InvalidPool;
    fn from_str(text: &str) -> Result<Self, InvalidPool> {
        match Range::parse(text) {
            Some((range, 8..=PREFIX)) => Ok(Self { text: text.to_owned(), range, given: Mutex::default() }),
            _ => Err(InvalidPool { text: text.to_owned() }),
        }
    }
}

/// Addresses that nobody else in this process gets; given back when dropped.
#[derive(Debug)]
pub struct Subnet<'a> {
    pool: &'a SubnetPool,
    first: u32,
}

impl Subnet<'_> {
    /// Returns the addresses as the engine wants them: `10.213.0.16/28`.
    pub fn text(&self) -> String {
        format!("{}/{PREFIX}", Ipv4Addr::from(self.first))
    }
}

impl Drop for Subnet<'_> {
    fn drop(&mut self) {
        self.pool.given.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.first);
    }
}

impl SubnetPool {
    /// Picks the first addresses that overlap neither these networks nor what was picked and is still held.
    pub fn take(&self, in_use: &[String], refused: &BTreeSet<String>) -> Option<Subnet<'_>> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used: Vec<Range> =
            in_use.iter().chain(refused).filter_map(|text| Range::parse(text)).map(|(range, _)| range).collect();
        used.extend(given.iter().map(|first| Range { first: *first, last: first + (SIZE - 1) }));
        let mut first = self.range.first;
        loop {
            let last = first.checked_add(SIZE - 1).filter(|last| *last <= self.range.last)?;
            match used.iter().filter(|range| range.overlaps(Range { first, last })).map(|range| range.last).max() {
                None => break,
                // Behind what is in the way, on our own grid.
                Some(end) => first = end.checked_add(1)?.checked_next_multiple_of(SIZE)?,
            }
        }
        given.insert(first);
        Some(Subnet { pool: self, first })
    }
}

impl Devbox<'_> {
    pub(super) async fn make_network(&self) -> Result<(), EnvironmentError> {
        let name = self.name(ROLE);
        let failed = |source| EnvironmentError::Engine { action: format!("make network {name}"), source };
        self.announce(ObjectKind::Network, &name)?;
        let mut refused = BTreeSet::new();
        for _ in 0..TRIES {
            let in_use = self.engine.subnets().await.map_err(failed)?;
            let subnet = self
                .pool
                .take(&in_use, &refused)
                .ok_or_else(|| EnvironmentError::NoAddresses { pool: self.pool.text.clone() })?;
            let spec = NetworkSpec { name: name.clone(), subnet: subnet.text(), labels: self.labels(ROLE) };
            match self.engine.ensure_network(&spec).await {
                Ok(()) => return Ok(()),
                Err(EngineError::SubnetTaken { .. }) => refused.insert(spec.subnet),
                Err(source) => return Err(failed(source)),
            };
        }
        Err(EnvironmentError::NoAddresses { pool: self.pool.text.clone() })
    }

    /// Returns the name of the environment's network.
    pub(super) fn network_name(&self) -> String {
        self.name(ROLE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(text: &str) -> SubnetPool {
        text.parse().expect("a pool")
    }

    #[test]
    fn a_pool_is_an_ipv4_network_of_a_sensible_size() {
        for good in ["10.213.0.0/16", "172.30.4.0/28", "10.0.0.0/8"] {
            assert!(good.parse::<SubnetPool>().is_ok(), "{good}");
        }
        for bad in ["", "10.213.0.0", "10.213.0.0/29", "0.0.0.0/0", "fd00::/64", "10.213.0.0/x", "300.1.1.1/16"] {
            assert!(bad.parse::<SubnetPool>().is_err(), "{bad}");
        }
    }

    #[test]
    fn used_held_and_refused_addresses_are_skipped() {
        let pool = pool("10.213.0.0/24");
        let used = ["10.213.0.0/28".to_owned(), "172.17.0.0/16".into(), "fd00::/64".into(), "10.213.0.40/29".into()];
        let refused = BTreeSet::from(["10.213.0.48/28".to_owned()]);
        let held = pool.take(&used, &refused).expect("room");
        assert_eq!(held.text(), "10.213.0.16/28");
        assert_eq!(pool.take(&used, &refused).expect("room").text(), "10.213.0.64/28");
        drop(held);
        assert_eq!(pool.take(&used, &refused).expect("room").text(), "10.213.0.16/28");
        assert!(pool.take(&["10.0.0.0/8".into()], &refused).is_none());
    }

    #[test]
    fn a_pool_at_the_end_of_the_address_space_ends() {
        let pool = pool("255.255.255.240/28");
        let last = pool.take(&[], &BTreeSet::new()).expect("one network");
        assert_eq!(last.text(), "255.255.255.240/28");
        assert!(pool.take(&[], &BTreeSet::new()).is_none());
    }

    proptest! {
        #[test]
        fn no_two_networks_ever_overlap(used in prop::collection::vec((0u32..1 << 12, 20u32..=32), 0..8)) {
            let pool = pool("10.213.0.0/20");
            let base = u32::from(Ipv4Addr::new(10, 213, 0, 0));
            let used: Vec<String> =
                used.iter().map(|(offset, prefix)| format!("{}/{prefix}", Ipv4Addr::from(base + offset))).collect();
            let mut held = Vec::new();
            while let Some(subnet) = pool.take(&used, &BTreeSet::new()) {
                held.push(subnet);
            }
            let ranges: Vec<Range> = held.iter().filter_map(|subnet| Range::parse(&subnet.text())).map(|(range, _)| range)
                .chain(used.iter().filter_map(|text| Range::parse(text)).map(|(range, _)| range)).collect();
            for (index, range) in ranges.iter().enumerate().take(held.len()) {
                prop_assert_eq!(range.first % SIZE, 0);
                prop_assert!(ranges[index + 1..].iter().all(|other| !range.overlaps(*other)));
            }
        }
    }
}
