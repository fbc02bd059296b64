use std::sync::LazyLock;

use concilium_client_library::export::ExportedLog;
use concilium_privacy::{
    Mechanism, NoiseScale, PrivacyUnit, Release,
    ledger::{
        Attestation, Basis, Committed, ContentDigest, Event, LedgerEntry, LedgerHead, PeerHead, Raised,
        RequestId, RequestKey, Total,
    },
};
use concilium_rpc::{
    certificates::Authority,
    identity::Identity,
    signature::Purpose,
    tls::TlsMaterial,
    v1::{LedgerStatement, LedgerTask, SignedLedgerStatement},
};
use prost::Message as _;

use super::*;

const NOW_MS: i64 = 1_800_000_000_000;
const ROW: u64 = 40_000_001;

/// The certificates of three servers, and the PEM of their authority.
static SERVERS: LazyLock<([TlsMaterial; 3], String)> = LazyLock::new(|| {
    let authority = Authority::create().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let servers = [0, 1, 2].map(|server| {
        let identity = Identity::server(server).unwrap();
        let issued = authority.issue_between(&identity, &[], 1_000_000, 2_000_000_000).unwrap();
        issued.save(folder.path()).unwrap().load().unwrap()
    });
    (servers, authority.certificate_pem().to_owned())
});

fn key(request: u8) -> RequestKey {
    RequestKey { task: "digits".into(), epoch: 1, client: "alice".into(), request: RequestId([request; 16]) }
}

fn charge(request: u8) -> Event {
    Event::Committed(Committed {
        key: key(request),
        digest: ContentDigest([request; 32]),
        policy_digest: [1; 32],
        release: Release::Label,
        mechanism: Mechanism::DiscreteGaussian { sigma: NoiseScale::from_millionths(5_000_000) },
        threshold: None,
        unit: PrivacyUnit::Record,
        bins: 10,
        rows: 1,
        owners: 2,
        owners_digest: [2; 32],
        charged: Total { rho: NanoRho::new(ROW), requests: 1, rows: 1 },
        voided: NanoRho::ZERO,
        last: true,
    })
}

/// The entries' bytes in the log of `server`, and the hash after the last.
fn encoded(server: usize, events: Vec<Event>) -> (Vec<Vec<u8>>, [u8; 32]) {
    let mut hash = LedgerHead::EMPTY.hash;
    let entries = (0..).zip(events).map(|(number, mut event)| {
        if let Event::Committed(event) = &mut event {
            // Each server's digest of a content is its own, and so is its clock.
            event.digest.0[0] = server as u8;
        }
        let bytes = LedgerEntry { number, time_ms: 1_000 * server as u64 + number, event }.encode();
        hash = LedgerEntry::chain(&hash, &bytes);
        bytes
    });
    (entries.collect(), hash)
}

/// The log of these events as `server` signs it.
fn log(server: usize, events: Vec<Event>) -> ExportedLog {
    let (entries, hash) = encoded(server, events);
    let statement = LedgerStatement {
        entries: entries.len() as u64,
        head_hash: hash.to_vec().into(),
        version: "0.1.0".into(),
        opendp_version: "0.16.0".into(),
        tasks: vec![LedgerTask {
            task: "digits".into(),
            epoch: 1,
            cap_nano_rho: 1_000_000_000,
            delta: "1e-5".into(),
            ..LedgerTask::default()
        }],
    };
    let statement = statement.encode_to_vec();
    let signature = SERVERS.0[server].sign(Purpose::LedgerExport, &statement, NOW_MS).unwrap();
    ExportedLog {
        statement: SignedLedgerStatement { statement: statement.into(), signature: Some(signature) },
        entries: entries.into_iter().map(Into::into).collect(),
    }
}

/// The file of a log, as `export` writes it.
fn text(log: &ExportedLog) -> String {
    let checked = check(log, &Authorities::of(&SERVERS.0[0])).unwrap();
    let mut bytes = Vec::new();
    file::write(log, &checked, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Verifies files of these contents: what was printed, or the failure.
fn verify_texts(texts: &[&str]) -> Result<String, (FailureClass, String)> {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, &SERVERS.1).unwrap();
    let files: Vec<_> =
        (0..texts.len()).map(|number| folder.path().join(format!("{number}.jsonl"))).collect();
    files.iter().zip(texts).for_each(|(path, text)| fs::write(path, text).unwrap());
    let mut printed = Vec::new();
    let outcome = verify(&files, &ca, &mut Output::new(&mut printed));
    let printed = String::from_utf8(printed).unwrap();
    match outcome {
        Ok(()) => Ok(printed),
        Err(failure) => Err((failure.class(), format!("{printed}{failure}"))),
    }
}

fn refused(texts: &[&str], needle: &str) {
    let (class, message) = verify_texts(texts).unwrap_err();
    assert_eq!(class, FailureClass::Refused, "{message}");
    assert!(message.contains(needle), "{needle}: {message}");
}

#[test]
fn logs_that_agree_are_told_with_their_sums() {
    let texts = [0, 1, 2].map(|server| text(&log(server, vec![charge(1), charge(2)])));
    // The servers may commit in another order.
    let other = text(&log(2, vec![charge(2), charge(1)]));
    let printed = verify_texts(&[&texts[0], &texts[1], &other]).unwrap();
    for needle in ["0.080000002", "1.693", "0.16.0", "2027-01-15", "OK: 3 logs"] {
        assert!(printed.contains(needle), "{needle}: {printed}");
    }
    // What people read is in the file.
    for needle in
        ["\"event\":\"committed\"", "sigma 5", "\"rho\":\"0.040000001\"", "alice", "\"epsilon\":1.1"]
    {
        assert!(texts[0].contains(needle), "{needle}: {}", texts[0]);
    }
    // An older export of the same server.
    let older = text(&log(0, vec![charge(1)]));
    assert!(verify_texts(&[&older, &texts[0]]).is_ok());
    assert!(verify_texts(&[&text(&log(1, Vec::new()))]).is_ok());
}

#[test]
fn epochs_are_told_with_who_answers_for_them() {
    let begun = |basis, by: &str, carried: u64| Event::Attested {
        attestation: Attestation { task: "digits".into(), epoch: 2, basis, attested_by: by.into() },
        carried: Total { rho: NanoRho::new(carried), requests: carried / ROW, rows: carried / ROW },
    };
    let carried = |by| begun(Basis::CarriedOver { from_epoch: 1 }, by, ROW);
    let later = |request| {
        let Event::Committed(mut event) = charge(request) else { unreachable!("a charge") };
        event.key.epoch = 2;
        Event::Committed(event)
    };
    let texts = [0, 1].map(|server| text(&log(server, vec![charge(1), carried("Ann"), later(2)])));
    let printed = verify_texts(&[&texts[0], &texts[1]]).unwrap();
    for needle in ["carried over from epoch 1", "Ann", "0.080000002", "OK: 2 logs"] {
        assert!(printed.contains(needle), "{needle}: {printed}");
    }
    assert!(texts[0].contains("\"attested_by\":\"Ann\"") && texts[0].contains("\"carried_rho\""));
    // A server that lacked the charge carried nothing over, and was raised afterwards: its client has as much.
    let raised = Event::Raised(Raised {
        task: "digits".into(),
        epoch: 2,
        peer: 0,
        total: Total { rho: NanoRho::new(ROW), requests: 1, rows: 1 },
        by_client: [("alice".to_owned(), Total { rho: NanoRho::new(ROW), requests: 1, rows: 1 })].into(),
        ..Raised::default()
    });
    let behind = vec![begun(Basis::CarriedOver { from_epoch: 1 }, "Ann", 0), raised, later(2)];
    let (_, message) = verify_texts(&[&texts[0], &text(&log(1, behind))]).unwrap_err();
    assert!(message.contains("epoch 1") && !message.contains("epoch 2, client"), "{message}");

    refused(&[&texts[0], &text(&log(1, vec![charge(1), carried("Ben"), later(2)]))], "on that of Ben");
    let retrained = vec![charge(1), begun(Basis::Retrained, "Ann", 0), later(2)];
    refused(&[&texts[0], &text(&log(1, retrained))], "as retrained on that of Ann");
}

#[test]
fn changed_files_are_noticed() {
    let good = text(&log(0, vec![charge(1), charge(2), charge(3)]));
    let lines: Vec<_> = good.lines().collect();
    let join = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    refused(&[&join(&lines[..3])], "3 entries".replace('3', "2").as_str());
    refused(&[&join(&[lines[0], lines[1], lines[3], lines[2]])], "where entry 1 should be");
    // The text says something else than the bytes, in the beginning and in an entry.
    refused(&[&good.replacen("\"client\":\"alice\"", "\"client\":\"bob\"", 1)], "line 2");
    refused(&[&good.replacen("\"server\":0", "\"server\":1", 1)], "line 1");
    // Another charge in the last entry, with the signature of the true log.
    let forged = log(0, vec![charge(1), charge(2), charge(4)]);
    let forged = ExportedLog { statement: log(0, vec![charge(1), charge(2), charge(3)]).statement, ..forged };
    let error = check(&forged, &Authorities::of(&SERVERS.0[0])).err().unwrap();
    assert!(error.to_string().contains("last hash"), "{error}");
    let unsigned = ExportedLog {
        statement: SignedLedgerStatement { signature: None, ..forged.statement.clone() },
        ..forged
    };
    assert!(
        check(&unsigned, &Authorities::of(&SERVERS.0[0])).err().unwrap().to_string().contains("not signed")
    );

    for foreign in ["{}\n".to_owned(), String::new(), format!("{good}\n")] {
        let (class, message) = verify_texts(&[&foreign]).unwrap_err();
        assert_eq!(class, FailureClass::Input, "{message}");
    }
    let (class, message) = verify_texts(&[&good.replacen("\"bytes\":\"", "\"bytes\":\"x", 1)]).unwrap_err();
    assert_eq!(class, FailureClass::Input, "{message}");
    assert!(message.contains("line 2"), "{message}");
}

#[test]
fn servers_that_differ_are_told() {
    let full = text(&log(0, vec![charge(1), charge(2)]));
    // One server lacks a charge, or charged another request instead.
    let behind = text(&log(1, vec![charge(1)]));
    refused(&[&full, &behind], "0.040000001");
    let other = text(&log(1, vec![charge(1), charge(3)]));
    refused(&[&full, &other], "request 0303");
    // A ledger that was replaced: an older export is not its beginning.
    let replaced = text(&log(0, vec![charge(2), charge(1), charge(3)]));
    refused(&[&full, &replaced], "differ from entry 0 on");
    // Another server saw another log, although both have spent the same.
    let seen = |hash| Event::Delivered {
        requests: vec![key(1)],
        peers: vec![PeerHead { peer: 0, head: LedgerHead { entries: 1, hash } }],
    };
    let (_, truth) = encoded(0, vec![charge(1)]);
    let own = text(&log(0, vec![charge(1)]));
    assert!(verify_texts(&[&own, &text(&log(1, vec![charge(1), seen(truth)]))]).is_ok());
    refused(&[&own, &text(&log(1, vec![charge(1), seen([9; 32])]))], "saw another log of server 0");
}
