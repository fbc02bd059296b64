//! The store over files, as a server has it before and after a crash.

use concilium_network::Architecture;

use super::*;

#[test]
fn a_store_of_an_older_version_is_refused_by_its_path() {
    for table in OLD_MODELS {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("models.redb");
        let database = Database::create(&path).expect("a new file");
        let transaction = database.begin_write().expect("a transaction");
        transaction.open_table(table).expect("a new table");
        transaction.commit().expect("written");
        drop(database);
        let here = PartyIndex::ALL[0];
        let refusal = ModelStore::open(here, &path, Epochs::default()).err().expect("must be refused");
        assert!(matches!(refusal, ModelStoreError::Schema { .. }), "{refusal}");
        assert!(refusal.to_string().contains("share their models again"), "{refusal}");
    }
}

/// A store in a folder, opened again as after a crash.
fn open(folder: &Path) -> ModelStore {
    ModelStore::open(PartyIndex::ALL[0], &folder.join("models.redb"), Epochs::default()).expect("it opens")
}

fn key(model: &str) -> ModelKey {
    ModelKey { task: "votes".into(), owner: "ward".into(), model: model.into() }
}

/// An upload of the smallest model, whose content is `content`.
fn upload(model: &str, version: Option<u64>, content: u8) -> Upload {
    let architecture =
        br#"{"format":2,"input_features":1,"classes":2,"fractional_bits":12,"steps":[{"inputs":[0],
        "operation":{"kind":"dense","inputs":1,"outputs":2},"bound_bits":30}],"final_width":20}"#;
    let architecture = Architecture::from_json(architecture).expect("a sound architecture");
    let terms = Terms { epoch: 1, budget: None, retrained: false };
    let (own, next) = (Component::Seed([content; 32]), Component::Seed([content + 1; 32]));
    let content_digest = [content; 32];
    Upload { key: key(model), version, architecture, content_digest, terms, own, next }
}

fn make_ready(store: &ModelStore, model: &str, version: u64) {
    let key = VersionKey { model: key(model), version };
    store.set_state(&key, ModelState::Ready, "", None).expect("it is there");
}

/// Version, state and whether the shares are erased, of all versions of `m`.
fn states(store: &ModelStore) -> Vec<(u64, ModelState, bool)> {
    store.versions(&key("m")).iter().map(|entry| (entry.version, entry.state, entry.erased)).collect()
}

const STAGED: ModelState = ModelState::Staged;
const READY: ModelState = ModelState::Ready;
const RETIRED: ModelState = ModelState::Retired;

#[test]
fn a_version_votes_until_its_successor_is_settled_whenever_the_server_restarts() {
    let folder = tempfile::tempdir().expect("a folder");
    let votes =
        |store: &ModelStore| store.ready("votes").iter().map(|entry| entry.version).collect::<Vec<_>>();
    let store = open(folder.path());
    assert_eq!(store.upload(upload("m", None, 1), 1, 0).expect("uploaded").version, 1);
    assert_eq!((votes(&store), states(&store)), (vec![], vec![(1, STAGED, false)]));
    make_ready(&store, "m", 1);
    // A replacement counts as what it replaces: one model is allowed.
    store.upload(upload("m", Some(2), 3), 1, 0).expect("uploaded");
    assert!(matches!(store.upload(upload("n", None, 5), 1, 0), Err(RpcError::TooLarge { .. })));
    drop(store);
    let store = open(folder.path());
    assert_eq!((votes(&store), states(&store)), (vec![1], vec![(1, READY, false), (2, STAGED, false)]));
    make_ready(&store, "m", 2);
    drop(store);
    // A crash before all servers have it ready: both are, and the leader can go back to the first.
    let store = open(folder.path());
    assert_eq!(votes(&store), [2]);
    let second = store.ready("votes").remove(0);
    let first = store.ready_before(&second.key, second.version).expect("the first is kept");
    assert_eq!((first.version, first.prepared.is_some()), (1, true));
    assert!(store.ready_before(&first.key, first.version).is_none());
    // A third is taken when there is room for it again.
    assert!(matches!(store.upload(upload("m", Some(3), 7), 1, 0), Err(RpcError::TooLarge { .. })));
    store.settle(std::slice::from_ref(&second)).expect("settled");
    assert_eq!(states(&store), [(1, RETIRED, true), (2, READY, false)]);
    store.upload(upload("m", Some(7), 7), 1, 0).expect("numbers may be left out");
    // What was staged gives way to the next; what votes does not.
    store.upload(upload("m", None, 9), 1, 0).expect("uploaded");
    let expected = [(1, RETIRED, true), (2, READY, false), (7, RETIRED, true), (8, STAGED, false)];
    assert_eq!(states(&store), expected);
    drop(store);
    let store = open(folder.path());
    assert_eq!((votes(&store), states(&store)), (vec![2], expected.to_vec()));
    assert_eq!(store.present("votes").len(), 1);
    assert!(store.stored(&VersionKey { model: key("m"), version: 1 }).expect("listed").own.is_empty());
}

#[test]
fn numbers_are_used_once_and_contents_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    store.upload(upload("m", Some(4), 1), 9, 0).expect("uploaded");
    // The same again is no new version, whether or not it names its number.
    for version in [Some(4), None] {
        assert_eq!(store.upload(upload("m", version, 1), 9, 0).expect("again").version, 4);
    }
    for version in [1, 4] {
        let refusal = store.upload(upload("m", Some(version), 3), 9, 0).map(|_| ());
        assert!(matches!(refusal, Err(RpcError::ModelExists { .. })), "{refusal:?}");
    }
    assert_eq!(store.find(&key("m"), &[1; 32]).expect("found").version, 4);
    assert!(matches!(store.find(&key("m"), &[3; 32]), Err(RpcError::ModelExists { .. })));
    assert!(matches!(store.find(&key("n"), &[1; 32]), Err(RpcError::UnknownModel { .. })));
    let withdrawn = store.withdraw(&key("m"), None, "no longer wanted").expect("withdrawn");
    assert_eq!((withdrawn.state, withdrawn.reason.as_str()), (RETIRED, "no longer wanted"));
    assert!(store.withdraw(&key("m"), None, "again").is_err());
    assert!(store.set_state(&withdrawn.version_key(), READY, "", None).is_err(), "its shares are gone");
    assert!(store.prepare(&withdrawn.version_key()).is_err());
    // The number goes on.
    assert_eq!(store.upload(upload("m", None, 5), 9, 0).expect("uploaded").version, 5);
}
