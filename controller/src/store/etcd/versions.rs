//! Which versions of etcd have defects that matter here. A decider.

/// Says what to do about a version; `None`: nothing.
///
/// etcd's change logs: a lease may be renewed although it was revoked (mended in 3.4.38, 3.5.23, 3.6.5), and reads may
/// be stale after a pause of the process (mended in 3.4.42, 3.5.28, 3.6.9). 3.4 gets no more mends.
pub(super) fn advice(version: &str) -> Option<&'static str> {
    const RENEW: &str = "before 3.5.28 and 3.6.9 etcd may renew a lease that it revoked, and read what is no longer true; devfleet's writes are safe, but jobs may pause needlessly: use 3.5.28, 3.6.9, or later";
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let (major, minor, patch) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let mended = match (major, minor) {
        (3, 5) => patch >= 28,
        (3, 6) => patch >= 9,
        _ => (major, minor) > (3, 6),
    };
    (!mended).then_some(RENEW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_the_mends_are_warned_of() {
        for old in ["3.4.23", "3.4.45", "3.5.0", "3.5.27", "3.6.8", "3.6.0-rc.1", "2.3.8"] {
            assert!(advice(old).is_some(), "{old}");
        }
        for good in ["3.5.28", "3.5.31", "3.6.9", "3.7.0", "4.0.0"] {
            assert!(advice(good).is_none(), "{good}");
        }
        assert!(advice("unknown").is_none(), "nothing is known against it");
    }
}
