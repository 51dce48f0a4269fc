//! Several addresses under which the same is reached, and which of them is tried first.
//!
//! The one that answered last comes first; when it is away the others follow in the order in which they were written.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The addresses, at least one.
#[derive(Debug)]
pub struct Endpoints {
    urls: Vec<String>,
    first: AtomicUsize,
}

impl Endpoints {
    /// Makes a list in which the first address comes first. `None`: there is no address.
    pub fn new(urls: Vec<String>) -> Option<Endpoints> {
        (!urls.is_empty()).then(|| Endpoints { urls, first: AtomicUsize::new(0) })
    }

    /// Returns all addresses, as written.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Returns the address that is tried first.
    pub fn current(&self) -> &str {
        &self.urls[self.first.load(Ordering::Relaxed) % self.urls.len()]
    }

    /// Returns the places of all addresses in the order in which they are to be tried.
    pub fn order(&self) -> Vec<usize> {
        let first = self.first.load(Ordering::Relaxed);
        (0..self.urls.len()).map(|step| (first + step) % self.urls.len()).collect()
    }

    /// Notes which one answered.
    pub fn answered(&self, place: usize) {
        self.first.store(place % self.urls.len(), Ordering::Relaxed);
    }

    /// Puts the next one first: the one that was is of no use right now.
    pub fn elsewhere(&self) {
        // Of two who say so at once one is enough: nothing is lost if both turn.
        self.first.store((self.first.load(Ordering::Relaxed) + 1) % self.urls.len(), Ordering::Relaxed);
    }
}

/// Says whether a text is the address of a controller: `https://name:port` and nothing behind it.
pub fn is_controller(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://") else { return false };
    let Some((name, port)) = rest.strip_suffix('/').unwrap_or(rest).rsplit_once(':') else { return false };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let name_fits = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(plain),
    };
    name_fits && port.parse::<u16>().is_ok_and(|port| port > 0) && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_answered_last_comes_first_and_the_others_follow_in_order() {
        let three = ["a", "b", "c"].map(String::from).to_vec();
        let endpoints = Endpoints::new(three).expect("some");
        assert_eq!((endpoints.order(), endpoints.current()), (vec![0, 1, 2], "a"));
        endpoints.answered(2);
        assert_eq!((endpoints.order(), endpoints.current()), (vec![2, 0, 1], "c"));
        endpoints.elsewhere();
        assert_eq!(endpoints.order(), [0, 1, 2]);
        assert!(Endpoints::new(Vec::new()).is_none());
    }

    #[test]
    fn an_address_is_https_with_a_port_and_nothing_behind_it() {
        for good in ["https://c:7443", "https://127.0.0.1:7443/", "https://[::1]:7443", "https://c.example.com:1"] {
            assert!(is_controller(good), "{good}");
        }
        for bad in [
            "",
            "c:7443",
            "http://c:1",
            "https://c",
            "https://c:0",
            "https://c:+1",
            "https://c:1/x",
            "https://u@c:1",
            "https://:1",
            "https://c:1?x",
            "https://::1:7443",
        ] {
            assert!(!is_controller(bad), "{bad}");
        }
    }
}
