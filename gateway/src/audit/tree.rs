//! The Merkle tree over the lines (RFC 6962, section 2.1): its root, and proofs about it.
//!
//! Pure arithmetic on hashes. A [`Frontier`] is all that a writer or reader must keep to go on; a [`Tree`] holds the
//! leaves too, and begins where the pruned part ends.

use sha2::{Digest as _, Sha256};

/// SHA-256.
pub type Hash = [u8; 32];

/// The hash of one line, without its line feed, as a leaf.
pub fn leaf(line: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(line).finalize().into()
}

/// The hash of an inner node.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// The roots of the full subtrees that a tree of some size falls into, the largest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// A frontier as it was stored; `None` if there cannot be that many peaks.
    pub fn new(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (peaks.len() == size.count_ones() as usize).then_some(Self { size, peaks })
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // As many full subtrees close as the old size ends in ones.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node(&left, &hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// How many leaves there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The peaks, the largest first.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// The root; of no leaves at all, the hash of nothing.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else {
            return Sha256::digest([]).into();
        };
        peaks.fold(*last, |right, left| node(left, &right))
    }
}

/// The leaves from some place on, and the frontier before them.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    before: Frontier,
    leaves: Vec<Hash>,
}

impl Tree {
    /// A tree whose first leaves are known by their frontier alone.
    pub fn after(before: Frontier) -> Self {
        Self {
            before,
            leaves: Vec::new(),
        }
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        self.leaves.push(leaf);
    }

    /// The path from a leaf to the root of the first `size` leaves; `None` if the leaf is not held.
    pub fn inclusion(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        let (mut start, mut end, mut path) = (0, size, Vec::new());
        if index >= size {
            return None;
        }
        while end - start > 1 {
            let middle = start + split(end - start);
            if index < middle {
                path.push(self.range(middle, end)?);
                end = middle;
            } else {
                path.push(self.range(start, middle)?);
                start = middle;
            }
        }
        path.reverse();
        Some(path)
    }

    /// The proof that the first `old` leaves are those of an earlier tree; `None` if it cannot be made from what is held.
    pub fn consistency(&self, old: u64, size: u64) -> Option<Vec<Hash>> {
        let (mut start, mut end, mut path, mut whole) = (0, size, Vec::new(), true);
        if old == 0 || old > size {
            return None;
        }
        while end != old {
            let middle = start + split(end - start);
            if old <= middle {
                path.push(self.range(middle, end)?);
                end = middle;
            } else {
                path.push(self.range(start, middle)?);
                (start, whole) = (middle, false);
            }
        }
        if !whole {
            path.push(self.range(start, end)?);
        }
        path.reverse();
        Some(path)
    }

    /// The hash over the leaves from `start` to before `end`, both at places where a subtree begins and ends.
    fn range(&self, start: u64, end: u64) -> Option<Hash> {
        let held = self.before.size;
        if end <= held {
            let (mut at, mut rest) = (0, held);
            for peak in &self.before.peaks {
                let wide = 1 << rest.ilog2();
                if (at, at + wide) == (start, end) {
                    return Some(*peak);
                }
                (at, rest) = (at + wide, rest - wide);
            }
            return None;
        }
        if end - start == 1 {
            return self.leaves.get(usize::try_from(start - held).ok()?).copied();
        }
        let middle = start + split(end - start);
        Some(node(&self.range(start, middle)?, &self.range(middle, end)?))
    }
}

/// Whether a path leads from a leaf to a root (RFC 9162, section 2.1.3.2).
pub fn includes(index: u64, size: u64, leaf: &Hash, path: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut place, mut last, mut hash) = (index, size - 1, *leaf);
    for step in path {
        if last == 0 {
            return false;
        }
        if place & 1 == 1 || place == last {
            hash = node(step, &hash);
            while place & 1 == 0 && place != 0 {
                (place, last) = (place >> 1, last >> 1);
            }
        } else {
            hash = node(&hash, step);
        }
        (place, last) = (place >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Whether a path shows that a tree grew out of an older one (RFC 9162, section 2.1.4.2).
pub fn grew(old: (u64, &Hash), new: (u64, &Hash), path: &[Hash]) -> bool {
    let ((old_size, old_root), (new_size, new_root)) = (old, new);
    if old_size == new_size {
        return path.is_empty() && old_root == new_root;
    }
    if old_size == 0 || old_size > new_size {
        return false;
    }
    let mut steps = path.iter();
    let first = if old_size.is_power_of_two() {
        Some(old_root)
    } else {
        steps.next()
    };
    let Some(first) = first else { return false };
    let (mut place, mut last) = (old_size - 1, new_size - 1);
    while place & 1 == 1 {
        (place, last) = (place >> 1, last >> 1);
    }
    let (mut of_old, mut of_new) = (*first, *first);
    for step in steps {
        if last == 0 {
            return false;
        }
        if place & 1 == 1 || place == last {
            of_old = node(step, &of_old);
            of_new = node(step, &of_new);
            while place & 1 == 0 && place != 0 {
                (place, last) = (place >> 1, last >> 1);
            }
        } else {
            of_new = node(&of_new, step);
        }
        (place, last) = (place >> 1, last >> 1);
    }
    last == 0 && of_old == *old_root && of_new == *new_root
}

/// The largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::pepper::hex;

    /// The inputs of the test vectors that Certificate Transparency's implementations share.
    fn leaves() -> Vec<Hash> {
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        inputs.iter().map(|input| leaf(input)).collect()
    }

    fn tree(leaves: &[Hash]) -> (Tree, Vec<Hash>) {
        let (mut tree, mut frontier, mut roots) = (Tree::default(), Frontier::default(), vec![]);
        roots.push(frontier.root());
        for hash in leaves {
            tree.push(*hash);
            frontier.push(*hash);
            roots.push(frontier.root());
        }
        (tree, roots)
    }

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let (_, roots) = tree(&leaves());
        for (size, root) in [
            (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
            (2, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
            (3, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
            (8, "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
        ] {
            assert_eq!(hex(&roots[size]), root, "of {size} leaves");
        }
    }

    #[test]
    fn every_leaf_is_proved_and_no_other_in_its_place() {
        let leaves: Vec<Hash> = (0..40_u8).map(|n| leaf(&[n])).collect();
        let (tree, roots) = tree(&leaves);
        for size in 1..=leaves.len() {
            for index in 0..size {
                let path = tree.inclusion(index as u64, size as u64).unwrap();
                let proves = |at: usize, leaf: &Hash, root: &Hash| includes(at as u64, size as u64, leaf, &path, root);
                assert!(proves(index, &leaves[index], &roots[size]));
                assert!(!proves(index, &leaves[(index + 1) % 40], &roots[size]));
                assert!(!proves(index, &leaves[index], &roots[size - 1]));
                assert!(size == 1 || !proves((index + 1) % size, &leaves[index], &roots[size]));
            }
        }
        assert_eq!(tree.inclusion(3, 3), None);
    }

    #[test]
    fn a_tree_grew_out_of_each_of_its_beginnings_and_of_nothing_else() {
        let leaves: Vec<Hash> = (0..40_u8).map(|n| leaf(&[n])).collect();
        let (tree, roots) = tree(&leaves);
        for new in 1..=leaves.len() {
            for old in 1..=new {
                let path = tree.consistency(old as u64, new as u64).unwrap();
                assert!(grew((old as u64, &roots[old]), (new as u64, &roots[new]), &path));
                let (wrong, right) = (&roots[old - 1], &roots[new]);
                assert!(!grew((old as u64, wrong), (new as u64, right), &path));
            }
        }
    }

    #[test]
    fn what_is_left_after_pruning_is_proved_as_before() {
        let leaves: Vec<Hash> = (0..40_u8).map(|n| leaf(&[n])).collect();
        let (whole, roots) = tree(&leaves);
        for first in 1..40_u64 {
            let mut before = Frontier::default();
            leaves
                .iter()
                .take(usize::try_from(first).unwrap())
                .for_each(|leaf| before.push(*leaf));
            let again = Frontier::new(before.size(), before.peaks().to_vec());
            assert_eq!(again.as_ref(), Some(&before));
            let mut rest = Tree::after(before);
            leaves
                .iter()
                .skip(usize::try_from(first).unwrap())
                .for_each(|leaf| rest.push(*leaf));
            for index in first..40 {
                let path = rest.inclusion(index, 40);
                assert_eq!(path, whole.inclusion(index, 40));
                assert!(includes(
                    index,
                    40,
                    &leaves[usize::try_from(index).unwrap()],
                    &path.unwrap(),
                    &roots[40]
                ));
            }
            for old in first..=40 {
                assert_eq!(rest.consistency(old, 40), whole.consistency(old, 40));
            }
            // What is gone itself needs its pruned neighbours.
            assert_eq!(rest.inclusion(0, 40).is_some(), first == 1);
        }
        assert_eq!(Frontier::new(3, vec![[0; 32]]), None);
    }
}
