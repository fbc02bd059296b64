//! Names, plans and digests of what is shared.

use concilium_mpc::input::Component;

use super::*;
use crate::store::tests::model;

/// Models can be shared on a runtime of many threads; compiled, never run.
#[allow(dead_code)]
fn sharing_can_be_spawned(
    connection: &Connection,
    task: &Task,
    network: &Network,
    options: &ShareOptions,
) -> impl Send {
    share_model(connection, task, "name", network, options)
}

#[test]
fn names_come_from_files() {
    for (path, name) in [("a/owner_00.onnx", "owner-00"), ("My Model.v2.onnx", "my-model-v2"), ("x", "x")] {
        assert_eq!(model_name(Path::new(path)).unwrap(), name);
    }
    for path in ["", "modèle.onnx", &"x".repeat(70)] {
        let message = model_name(Path::new(path)).unwrap_err().to_string();
        assert!(message.contains("--name"), "{message}");
    }
}

#[test]
fn what_the_servers_have_decides_what_is_done() {
    let everywhere = |version: u64, states: [Option<ModelState>; 3]| ModelEverywhere {
        task: "digits".into(),
        owner: "ward-7".into(),
        name: "m".into(),
        version,
        copies: states.map(|state| state.map(|state| Model { version, ..model("m", state, version as u8) })),
    };
    let upload = |withdraw: &[u64], version| Plan::Upload { withdraw: withdraw.to_vec(), version };
    let ready = |version| everywhere(version, [Some(ModelState::Ready); 3]);
    let retired = |version| everywhere(version, [Some(ModelState::Retired); 3]);
    assert_eq!(plan(&[], 42, false), upload(&[], 1));
    assert_eq!(plan(&[], 42, true), upload(&[], 1));
    assert_eq!(plan(&[ready(1)], 42, false), Plan::Leave);
    assert_eq!(plan(&[ready(1)], 42, true), upload(&[], 2));
    assert_eq!(plan(&[ready(1)], 43, false), Plan::Refuse { there: 42 });
    assert_eq!(plan(&[retired(1), ready(2)], 42, true), upload(&[], 3));
    // A number that was used is not used again.
    assert_eq!(plan(&[retired(1), retired(2)], 42, false), upload(&[], 3));
    for states in [
        [Some(ModelState::Ready), Some(ModelState::Ready), None],
        [Some(ModelState::Staged); 3],
        [Some(ModelState::Ready), Some(ModelState::Rejected), Some(ModelState::Ready)],
    ] {
        assert_eq!(plan(&[everywhere(1, states)], 42, false), upload(&[1], 2));
        // What votes is not touched.
        assert_eq!(plan(&[ready(1), everywhere(2, states)], 42, true), upload(&[2], 3));
        assert_eq!(plan(&[ready(1), everywhere(2, states)], 42, false), Plan::Leave);
    }
    // Two are ready when a crash came before the older one was retired: the newer one votes.
    assert_eq!(plan(&[ready(1), ready(2)], 42, true), upload(&[], 3));
    // Servers that know no versions take the model away as a whole.
    assert_eq!(plan(&[ready(0)], 42, true), upload(&[0], 1));
    assert_eq!(plan(&[ready(0)], 42, false), Plan::Leave);
}

#[test]
fn the_digest_depends_on_everything() {
    let shares = |bytes: [u8; 3]| {
        let component = |index: usize| match index {
            2 => Component::Data(vec![bytes[2]; 16]),
            seed => Component::Seed([bytes[seed]; 32]),
        };
        [0, 1, 2]
            .map(|server: usize| DealtShare { own: component(server), next: component((server + 1) % 3) })
    };
    let dealt = shares([1, 2, 3]);
    let base = content_digest(&[7; 32], "digits", "m", b"{}", &dealt);
    assert_eq!(base, content_digest(&[7; 32], "digits", "m", b"{}", &dealt));
    let others = [
        content_digest(&[8; 32], "digits", "m", b"{}", &dealt),
        content_digest(&[7; 32], "digit", "sm", b"{}", &dealt),
        content_digest(&[7; 32], "digits", "n", b"{}", &dealt),
        content_digest(&[7; 32], "digits", "m", b"{ }", &dealt),
        content_digest(&[7; 32], "digits", "m", b"{}", &shares([0, 2, 3])),
        content_digest(&[7; 32], "digits", "m", b"{}", &shares([1, 0, 3])),
        content_digest(&[7; 32], "digits", "m", b"{}", &shares([1, 2, 0])),
    ];
    assert!(others.iter().all(|other| *other != base));
}
