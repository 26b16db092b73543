//! Values by prefixes of addresses: of an address, all prefixes that it is in.
//!
//! In: prefixes that come and go. Out: for an address, the values on its way, the shortest prefix first; each step looks
//! at one more bit, so that a lookup costs as much as prefixes lie in one another, and not as there are. A clone is two
//! pointers, and a change of one copies the nodes on the way to what changes: the rest is shared. Which of several
//! prefixes is meant is not decided here.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

/// Values by prefixes of both families.
#[derive(Clone, Debug)]
pub(super) struct PrefixTree<V> {
    v4: Link<V>,
    v6: Link<V>,
}

type Link<V> = Option<Arc<Node<V>>>;

/// A prefix that has a value, or in which two others part. It is in that of each node above it.
#[derive(Clone, Debug)]
struct Node<V> {
    prefix: Prefix,
    value: Option<V>,
    /// By the first bit after the prefix.
    below: [Link<V>; 2],
}

/// Bits of an address, the first ones at the top. Those after `length` are zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Prefix {
    bits: u128,
    length: u8,
}

impl<V> Default for PrefixTree<V> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<V: Clone> PrefixTree<V> {
    /// The value of exactly this prefix.
    pub(super) fn get(&self, net: IpNet) -> Option<&V> {
        let prefix = Prefix::of(net);
        let on_way = Way { next: self.root(net.addr()), bits: prefix.bits };
        on_way
            .take_while(|(length, _)| *length <= prefix.length)
            .find_map(|(length, value)| (length == prefix.length).then_some(value))
    }

    /// Every value whose prefix the address is in, with the prefix's length, the shortest first.
    pub(super) fn containing(&self, ip: IpAddr) -> impl Iterator<Item = (u8, &V)> {
        Way { next: self.root(ip), bits: Prefix::of(ip.into()).bits }
    }

    /// Gives a prefix a value, in the place of the one that it has.
    pub(super) fn insert(&mut self, net: IpNet, value: V) {
        let prefix = Prefix::of(net);
        let mut link = self.root_mut(net.addr());
        loop {
            let Some(node) = link else {
                *link = Some(Node::leaf(prefix, value));
                return;
            };
            let common = node.prefix.common(prefix);
            if common < node.prefix.length {
                *node = parting(node.clone(), common, prefix, value);
                return;
            }
            let node = Arc::make_mut(node);
            if common == prefix.length {
                node.value = Some(value);
                return;
            }
            link = &mut node.below[prefix.bit(common)];
        }
    }

    /// Takes a prefix out.
    pub(super) fn remove(&mut self, net: IpNet) {
        // What is not there would have the way to it copied for nothing.
        if self.get(net).is_some() {
            remove(self.root_mut(net.addr()), Prefix::of(net));
        }
    }

    fn root(&self, ip: IpAddr) -> Option<&Node<V>> {
        if ip.is_ipv4() { self.v4.as_deref() } else { self.v6.as_deref() }
    }

    fn root_mut(&mut self, ip: IpAddr) -> &mut Link<V> {
        if ip.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }
}

/// The nodes with values on the way to an address.
struct Way<'a, V> {
    next: Option<&'a Node<V>>,
    bits: u128,
}

impl<'a, V> Iterator for Way<'a, V> {
    type Item = (u8, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        let address = Prefix { bits: self.bits, length: 128 };
        loop {
            let node = self.next.take()?;
            let length = node.prefix.length;
            if node.prefix.common(address) < length {
                return None;
            }
            if length < 128 {
                self.next = node.below[address.bit(length)].as_deref();
            }
            if let Some(value) = &node.value {
                return Some((length, value));
            }
        }
    }
}

impl<V> Node<V> {
    fn leaf(prefix: Prefix, value: V) -> Arc<Self> {
        Arc::new(Self { prefix, value: Some(value), below: [None, None] })
    }
}

/// A node above `node` and the new prefix, which have their first `common` bits alike; or the new prefix itself, where it
/// has no more.
fn parting<V>(node: Arc<Node<V>>, common: u8, prefix: Prefix, value: V) -> Arc<Node<V>> {
    let mut below = [None, None];
    let side = node.prefix.bit(common);
    below[side] = Some(node);
    if common == prefix.length {
        return Arc::new(Node { prefix, value: Some(value), below });
    }
    below[1 - side] = Some(Node::leaf(prefix, value));
    Arc::new(Node { prefix: prefix.first(common), value: None, below })
}

/// Takes out a prefix that is there, and the nodes that are of no more use.
fn remove<V: Clone>(link: &mut Link<V>, prefix: Prefix) {
    let Some(node) = link else { return };
    let node = Arc::make_mut(node);
    if node.prefix == prefix {
        node.value = None;
    } else {
        remove(&mut node.below[prefix.bit(node.prefix.length)], prefix);
    }
    if node.value.is_some() {
        return;
    }
    match &mut node.below {
        [Some(_), Some(_)] => {}
        [one, other] => *link = one.take().or_else(|| other.take()),
    }
}

impl Prefix {
    fn of(net: IpNet) -> Self {
        let bits = match net.network() {
            IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
            IpAddr::V6(ip) => ip.to_bits(),
        };
        Self { bits, length: net.prefix_len() }
    }

    /// How many of the first bits two prefixes have alike.
    fn common(self, other: Self) -> u8 {
        let alike = (self.bits ^ other.bits).leading_zeros();
        // At most 128.
        (alike as u8).min(self.length).min(other.length)
    }

    /// The bit after the first `count`, of which there must be one.
    fn bit(self, count: u8) -> usize {
        usize::from(self.bits << count >> 127 == 1)
    }

    fn first(self, length: u8) -> Self {
        let kept = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        Self { bits: self.bits & kept, length }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr, net::Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// Few addresses that differ in all places, so that prefixes lie in one another.
    fn ip() -> impl Strategy<Value = IpAddr> {
        let bits = prop_oneof![0_u32..8, (0_u32..8).prop_map(|top| top << 29), any::<u32>()];
        (bits, any::<bool>()).prop_map(|(bits, is_v4)| match is_v4 {
            true => Ipv4Addr::from_bits(bits).into(),
            false => Ipv6Addr::from_bits(u128::from(bits) << 96 | u128::from(bits)).into(),
        })
    }

    fn net() -> impl Strategy<Value = IpNet> {
        (ip(), 0_u8..=128).prop_map(|(ip, length)| {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            IpNet::new(ip, length.min(most)).unwrap()
        })
    }

    fn found(tree: &PrefixTree<u16>, ip: IpAddr) -> Vec<(u8, u16)> {
        tree.containing(ip).map(|(length, value)| (length, *value)).collect()
    }

    fn expected(model: &BTreeMap<IpNet, u16>, ip: IpAddr) -> Vec<(u8, u16)> {
        let mut found: Vec<_> = model
            .iter()
            .filter(|(net, _)| net.contains(&ip))
            .map(|(net, value)| (net.prefix_len(), *value))
            .collect();
        found.sort_unstable();
        found
    }

    fn nodes<'a>(link: &'a Link<u16>, all: &mut Vec<&'a Arc<Node<u16>>>) {
        if let Some(node) = link {
            all.push(node);
            node.below.iter().for_each(|below| nodes(below, all));
        }
    }

    fn all_nodes(tree: &PrefixTree<u16>) -> Vec<&Arc<Node<u16>>> {
        let mut all = Vec::new();
        nodes(&tree.v4, &mut all);
        nodes(&tree.v6, &mut all);
        all
    }

    proptest! {
        #[test]
        fn a_tree_finds_what_looking_at_all_prefixes_finds(
            changes in prop::collection::vec((net(), prop::option::of(0_u16..9)), 0..60),
            asked in prop::collection::vec(ip(), 1..20),
        ) {
            let (mut tree, mut model) = (PrefixTree::default(), BTreeMap::new());
            for (net, value) in &changes {
                let (before, was) = (tree.clone(), model.clone());
                match value {
                    Some(value) => {
                        tree.insert(*net, *value);
                        model.insert(net.trunc(), *value);
                    }
                    None => {
                        tree.remove(*net);
                        model.remove(&net.trunc());
                    }
                }
                prop_assert_eq!(tree.get(*net), value.as_ref());
                for ip in &asked {
                    prop_assert_eq!(found(&tree, *ip), expected(&model, *ip));
                    prop_assert_eq!(found(&before, *ip), expected(&was, *ip));
                }
            }
            // Nothing is kept but the values and where two of them part.
            prop_assert!(all_nodes(&tree).len() < 2 * model.len().max(1));
            model.into_keys().for_each(|net| tree.remove(net));
            prop_assert_eq!(all_nodes(&tree).len(), 0);
        }
    }

    #[test]
    fn a_change_copies_the_way_to_it_and_shares_the_rest() {
        let mut tree = PrefixTree::default();
        for number in 0..4096_u32 {
            let ip = Ipv4Addr::from_bits(number << 8);
            tree.insert(IpNet::new(ip.into(), 24).unwrap(), 1);
        }
        let before = tree.clone();
        tree.insert("0.1.2.128/25".parse().unwrap(), 2);
        let old = all_nodes(&before);
        let is_new = |node: &&&Arc<Node<u16>>| !old.iter().any(|old| Arc::ptr_eq(old, node));
        let copied = all_nodes(&tree).iter().filter(is_new).count();
        // Twelve bits part 4096 prefixes.
        assert!(copied <= 14, "{copied}");
        let untouched = tree.clone();
        tree.remove("0.1.2.0/26".parse().unwrap());
        assert!(Arc::ptr_eq(tree.v4.as_ref().unwrap(), untouched.v4.as_ref().unwrap()));
    }
}
