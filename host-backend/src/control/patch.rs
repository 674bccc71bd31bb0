// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Differences of JSON documents as merge patches (RFC 7396).

use serde_json::{Map, Value};

/// The merge patch that makes `after` of `before`. Neither may have a `null` in an object.
pub(super) fn diff(before: &Map<String, Value>, after: &Map<String, Value>) -> Map<String, Value> {
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = after.iter().filter_map(|(key, now)| match (before.get(key), now) {
        (Some(then), _) if then == now => None,
        (Some(Value::Object(then)), Value::Object(now)) => {
            Some((key.clone(), Value::Object(diff(then, now))))
        }
        _ => Some((key.clone(), now.clone())),
    });
    gone.chain(changed).collect()
}

/// Applies a merge patch.
pub(crate) fn apply(document: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, change) in patch {
        match (document.get_mut(&key), change) {
            (_, Value::Null) => drop(document.remove(&key)),
            (Some(Value::Object(old)), Value::Object(change)) => apply(old, change),
            (_, change) => drop(document.insert(key, change)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn a_patch_has_what_changed_and_nothing_else() {
        let before = object(json!({"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": {"f": 1}, "g": 5}));
        let after = object(json!({"a": 1, "b": {"c": 3, "d": [1, 2]}, "e": 7, "h": {"i": 1}}));
        assert_eq!(diff(&before, &after), object(json!({"b": {"c": 3}, "e": 7, "g": null, "h": {"i": 1}})));
    }

    fn documents() -> impl Strategy<Value = Map<String, Value>> {
        let leaf = prop_oneof![any::<u8>().prop_map(Value::from), "[a-c]{0,2}".prop_map(Value::from)];
        let value = leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        prop::collection::btree_map("[a-d]", value, 0..4).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn applying_a_difference_gives_the_other_document(before in documents(), after in documents()) {
            let mut document = before.clone();
            apply(&mut document, diff(&before, &after));
            prop_assert_eq!(document, after);
        }
    }
}
