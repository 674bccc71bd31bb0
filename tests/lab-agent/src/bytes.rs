// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! File contents in a line of JSON.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Any bytes; hexadecimal digits in JSON, because configuration space is not text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        if !rest.is_empty() {
            return Err(D::Error::custom("odd number of hexadecimal digits"));
        }
        let byte = |pair: &[u8; 2]| {
            let text = str::from_utf8(pair).map_err(D::Error::custom)?;
            u8::from_str_radix(text, 16).map_err(D::Error::custom)
        };
        pairs.iter().map(byte).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    #[test]
    fn bytes_survive_json() {
        let bytes = Bytes(vec![0, 0xff, b'\n']);
        let json = serde_json::to_string(&bytes).unwrap();
        assert_eq!(json, r#""00ff0a""#);
        assert_eq!(serde_json::from_str::<Bytes>(&json).unwrap(), bytes);
    }

    #[test]
    fn broken_digits_are_refused() {
        assert!(serde_json::from_str::<Bytes>(r#""0""#).is_err());
        assert!(serde_json::from_str::<Bytes>(r#""0g""#).is_err());
    }
}
