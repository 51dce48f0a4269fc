//! Networks that fail: cut one way or both, link down, slow, lossy. Every fault ends with its value.

use crate::fleet::Fleet;

/// Which way a cut works, seen from the node where it is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// What comes from the others is dropped.
    In,
    /// What goes to the others is dropped.
    Out,
    /// Both.
    Both,
}

/// Packets between one node and others are dropped.
pub(crate) struct Cut<'a> {
    fleet: &'a Fleet,
    node: String,
    rules: Vec<Vec<String>>,
}

impl<'a> Cut<'a> {
    /// Cuts a node from others.
    pub(crate) fn between(fleet: &'a Fleet, node: &str, others: &[&str], way: Way) -> Self {
        let mut rules = Vec::new();
        for other in others {
            let address = fleet.address(other);
            if way != Way::Out {
                rules.push(["INPUT", "-s", &address, "-j", "DROP"].map(str::to_owned).to_vec());
            }
            if way != Way::In {
                rules.push(["OUTPUT", "-d", &address, "-j", "DROP"].map(str::to_owned).to_vec());
            }
        }
        Self::make(fleet, node, rules)
    }

    /// Drops this share of what comes in and goes out.
    pub(crate) fn lossy(fleet: &'a Fleet, node: &str, share: f64) -> Self {
        let share = share.to_string();
        let rule = |chain: &str| {
            [chain, "-m", "statistic", "--mode", "random", "--probability", &share, "-j", "DROP"]
                .map(str::to_owned)
                .to_vec()
        };
        Self::make(fleet, node, vec![rule("INPUT"), rule("OUTPUT")])
    }

    fn make(fleet: &'a Fleet, node: &str, rules: Vec<Vec<String>>) -> Self {
        let cut = Self { fleet, node: node.to_owned(), rules };
        cut.each("-I");
        cut
    }

    fn each(&self, action: &str) {
        for rule in &self.rules {
            let mut arguments = vec!["iptables", "-w", action];
            arguments.extend(rule.iter().map(String::as_str));
            self.fleet.in_node(&self.node, &arguments);
        }
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.each("-D");
    }
}

/// A node whose link is down.
pub(crate) struct Unplugged<'a> {
    fleet: &'a Fleet,
    node: String,
}

impl<'a> Unplugged<'a> {
    /// Takes the link down.
    pub(crate) fn node(fleet: &'a Fleet, node: &str) -> Self {
        // At the bridge's end: the node keeps its addresses and routes.
        fleet.in_node("hub", &["ip", "link", "set", "dev", node, "down"]);
        Self { fleet, node: node.to_owned() }
    }
}

impl Drop for Unplugged<'_> {
    fn drop(&mut self) {
        self.fleet.in_node("hub", &["ip", "link", "set", "dev", &self.node, "up"]);
    }
}

/// A node whose link carries little.
pub(crate) struct Slow<'a> {
    fleet: &'a Fleet,
    node: String,
}

impl<'a> Slow<'a> {
    /// Limits what leaves the node: `1mbit`.
    pub(crate) fn node(fleet: &'a Fleet, node: &str, rate: &str) -> Self {
        let shape =
            ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "16kb", "latency", "200ms"];
        fleet.in_node(node, &shape);
        Self { fleet, node: node.to_owned() }
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        self.fleet.in_node(&self.node, &["tc", "qdisc", "del", "dev", "eth0", "root"]);
    }
}
