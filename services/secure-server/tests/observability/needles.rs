//! Secrets in every form in which they could be written down, and the search for them.

use std::collections::BTreeMap;

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;

/// Bytes that are searched for together. Eight random bytes do not turn up by chance.
const WORD: usize = 8;
/// Shortest text that is searched for: shorter ones turn up among times and counts.
const SHORTEST_TEXT: usize = 12;

/// What must not be found: the form that is searched for, and the secret that it is a form of.
#[derive(Default)]
pub(crate) struct Needles {
    forms: BTreeMap<Vec<u8>, String>,
}

impl Needles {
    fn insert(&mut self, form: impl Into<Vec<u8>>, name: &str) {
        let form = form.into();
        if form.len() >= WORD {
            self.forms.insert(form, name.to_owned());
        }
    }

    fn insert_text(&mut self, form: String, name: &str) {
        if form.len() >= SHORTEST_TEXT {
            // A log in JSON escapes quotes and backslashes once more.
            let escaped = form.replace('\\', "\\\\").replace('"', "\\\"");
            self.insert(escaped, name);
            self.insert(form, name);
        }
    }

    /// Random bytes: a seed, or elements of a share, eight bytes each.
    pub(crate) fn random_bytes(&mut self, name: &str, bytes: &[u8]) {
        self.encoded(name, bytes);
        for word in bytes.chunks_exact(WORD) {
            self.insert(word, name);
            self.encoded(name, word);
            let number = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            self.insert_text(number.to_string(), name);
            self.insert_text((number as i64).to_string(), name);
            self.insert_text(format!("{number:x}"), name);
            self.insert_text(format!("{number:X}"), name);
        }
    }

    /// A row of values that are chosen so that they do not turn up by chance, and their encodings,
    /// which are small numbers and searched for as a sequence.
    pub(crate) fn values(&mut self, name: &str, values: &[f64], encoded: &[i64]) {
        for value in values {
            // The digits alone: a float is printed in more than one way.
            self.insert(format!("{:.6}", value.abs()), name);
        }
        let bytes: Vec<u8> = encoded.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.insert(bytes.clone(), name);
        self.encoded(name, &bytes);
        for separator in [", ", ",", " "] {
            let signed: Vec<_> = encoded.iter().map(i64::to_string).collect();
            let unsigned: Vec<_> = encoded.iter().map(|&value| (value as u64).to_string()).collect();
            self.insert_text(signed.join(separator), name);
            self.insert_text(unsigned.join(separator), name);
        }
    }

    /// Numbers so long that each is searched for by itself, and as a row.
    pub(crate) fn numbers(&mut self, name: &str, numbers: &[i64]) {
        for number in numbers {
            // The digits alone, whatever sign is before them.
            self.insert_text(number.unsigned_abs().to_string(), name);
            self.insert(number.to_le_bytes(), name);
            self.insert(number.to_be_bytes(), name);
        }
        self.values(name, &[], numbers);
    }

    /// The key in a PEM file.
    pub(crate) fn key_file(&mut self, name: &str, pem: &str) {
        pem.lines().filter(|line| !line.starts_with("---")).for_each(|line| {
            self.insert_text(line.to_owned(), name);
        });
    }

    /// Bytes as text: hexadecimal, Base64, as lists and as escaped strings.
    fn encoded(&mut self, name: &str, bytes: &[u8]) {
        if bytes.len() < WORD {
            return;
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.insert_text(hex.to_uppercase(), name);
        self.insert_text(hex, name);
        // Without the last characters, which depend on what follows.
        for text in [STANDARD_NO_PAD.encode(bytes), URL_SAFE_NO_PAD.encode(bytes)] {
            self.insert_text(text[..text.len() - 2].to_owned(), name);
        }
        self.insert_text(format!("{bytes:?}").trim_matches(['[', ']']).to_owned(), name);
        self.insert_text(format!("{bytes:02x?}").trim_matches(['[', ']']).to_owned(), name);
        let escaped = format!("{:?}", Bytes::copy_from_slice(bytes));
        self.insert_text(escaped[2..escaped.len() - 1].to_owned(), name);
    }

    /// How many forms are searched for.
    pub(crate) fn len(&self) -> usize {
        self.forms.len()
    }

    /// All forms, for a search that must find them.
    pub(crate) fn all_forms(&self) -> Vec<u8> {
        self.forms.keys().flat_map(|form| form.iter().copied().chain(*b"\n\0\n")).collect()
    }

    /// The searcher for these needles.
    pub(crate) fn searcher(&self) -> Searcher<'_> {
        let automaton = AhoCorasick::new(self.forms.keys()).expect("the needles fit into a searcher");
        Searcher { names: self.forms.values().map(String::as_str).collect(), automaton }
    }
}

/// Finds needles.
pub(crate) struct Searcher<'a> {
    names: Vec<&'a str>,
    automaton: AhoCorasick,
}

impl Searcher<'_> {
    /// Every form that is there: its number, the secret and the place.
    pub(crate) fn find(&self, text: &[u8]) -> Vec<(usize, &str, usize)> {
        let found = self.automaton.find_overlapping_iter(text);
        found
            .map(|found| (found.pattern().as_usize(), self.names[found.pattern().as_usize()], found.start()))
            .collect()
    }
}
