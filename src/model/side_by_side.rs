//! Two sorted maps, gone through together.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Returns each key of two maps, in order, with what the first and the second have under it. Costs one step per entry and no
/// look-up.
pub fn side_by_side<'a, K: Ord, V>(
    first: &'a BTreeMap<K, V>,
    second: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let (mut first, mut second) = (first.iter().peekable(), second.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (first.peek(), second.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let a = if order.is_le() { first.next() } else { None };
        let b = if order.is_ge() { second.next() } else { None };
        let (key, _) = a.or(b)?;
        Some((key, a.map(|(_, value)| value), b.map(|(_, value)| value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_once_with_both_values() {
        let first = BTreeMap::from([(1, "a"), (2, "b"), (4, "d")]);
        let second = BTreeMap::from([(2, "B"), (3, "C")]);
        let all: Vec<_> = side_by_side(&first, &second).collect();
        assert_eq!(
            all,
            [
                (&1, Some(&"a"), None),
                (&2, Some(&"b"), Some(&"B")),
                (&3, None, Some(&"C")),
                (&4, Some(&"d"), None)
            ]
        );
    }
}
