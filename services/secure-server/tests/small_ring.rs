//! A task with a ring of 32 bits on three real server processes: answers, what lies at rest, and refusals.

mod support;

use concilium_client_library::Task;
use concilium_client_library::answer::Released;
use concilium_client_library::predict::Predictor;
use concilium_network::Ring;
use concilium_rpc::identity::Role;
use concilium_rpc::v1::component::Kind;
use support::{
    CLASSES, ROW_COST_NANO_RHO, World, all, make_ready, model_upload, model_upload_in, open, query,
    restart_with, rows, shifted_network, spent, task_file, vote,
};

/// Models of one kind, so that their votes stand far out of the noise.
const MODELS: usize = 60;

fn narrow_task_file() -> String {
    task_file("votes", "10").replace("fractional_bits", "ring_bits = 32\nfractional_bits")
}

/// Every row's counts are near the votes: |noise| < 30 = 12 standard deviations of the noise of all three
/// servers (sqrt(1.5) * 2), odds below 1e-30 for each count.
fn assert_near_votes(counts: &[i64], inputs: &ndarray::Array2<f64>) {
    for (row, input) in inputs.rows().into_iter().enumerate() {
        let winner = vote(&input.to_vec(), 1);
        for class in 0..CLASSES {
            let expected = if class == winner { MODELS as i64 } else { 0 };
            let difference = counts[row * CLASSES + class] - expected;
            assert!(difference.abs() < 30, "row {row} class {class}: off by {difference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_shared_tested_asked_and_read_again_in_32_bits() {
    let tasks = narrow_task_file();
    let mut world = World::start_with([&tasks, &tasks, &tasks], "").await;
    let owner = world.member(Role::Owner, "ward");
    let first = model_upload_in(Ring::Bits32, "votes", "m0", &shifted_network(1));
    // Two layers of 4 x 3 and 3 x 3 weights and 3 biases each, 4 bytes an element.
    let bytes: Vec<usize> =
        first.chunks.iter().map(|chunks| chunks.iter().map(|chunk| chunk.len()).sum()).collect();
    assert_eq!(bytes, [0, 4 * 27, 4 * 27]);
    make_ready(&owner, &first).await;
    for model in 1..MODELS {
        let name = format!("m{model}");
        make_ready(&owner, &model_upload_in(Ring::Bits32, "votes", &name, &shifted_network(1))).await;
    }
    let client = world.member(Role::Client, "alice");
    let task = client.task(0, "votes").await;
    assert_eq!((task.ring_bits, task.models_ready), (Some(32), MODELS as u32));
    let inputs = rows(4);
    let parts = all(query(&task, &inputs).send(&client).await);
    assert_near_votes(&open(&parts), &inputs);
    assert_eq!(spent(&world).await, [4 * ROW_COST_NANO_RHO; 3]);

    // After a restart the shares are read from the disk.
    restart_with(&mut world, &tasks).await;
    let client = world.member(Role::Client, "alice");
    let parts = all(query(&task, &inputs).send(&client).await);
    assert_near_votes(&open(&parts), &inputs);

    // The client's library finds the ring in the task.
    let connection = client.connection();
    let task: Task = connection.task("votes").await.expect("the servers agree on the task");
    assert_eq!(task.ring, Ring::Bits32);
    let answers = Predictor::new(&connection, task).predict(inputs.view(), |_| {}).await.expect("answered");
    let Released::Histograms(counts) = &answers[0].released else { panic!("the task releases histograms") };
    assert_near_votes(counts.as_slice().expect("in standard layout"), &inputs);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_ring_is_refused() {
    let tasks = narrow_task_file();
    let world = World::start_with([&tasks, &tasks, &tasks], "").await;
    let owner = world.member(Role::Owner, "ward");
    let network = shifted_network(0);

    // A model for the other ring, by its ring.
    let wide = model_upload("votes", "m", &network);
    let refusal = wide.send_to(&owner, 0).await.expect_err("another ring");
    assert_eq!(refusal.reason(), "SHAPE_MISMATCH");
    assert!(refusal.to_string().contains("32 bits in the ring"), "{refusal}");
    assert!(refusal.to_string().contains("64 bits in the ring"), "{refusal}");

    // Components of eight bytes an element, for a model and for a query.
    let mut spoiled = model_upload_in(Ring::Bits32, "votes", "m", &network);
    spoiled.headers[1].next = Some(concilium_rpc::v1::Component { kind: Some(Kind::DataBytes(8 * 27)) });
    let refusal = spoiled.send_to(&owner, 1).await.expect_err("too long");
    assert_eq!(refusal.reason(), "SHAPE_MISMATCH");
    assert!(refusal.to_string().contains("27 elements (108 bytes)"), "{refusal}");
    make_ready(&owner, &model_upload_in(Ring::Bits32, "votes", "m", &network)).await;
    let client = world.member(Role::Client, "alice");
    let mut task = client.task(0, "votes").await;
    task.ring_bits = None;
    let asked = query(&task, &rows(2));
    let refusal = asked.send_to(&client, 1).await.err().expect("eight bytes an element");
    assert_eq!(refusal.reason(), "SHAPE_MISMATCH");
    assert!(refusal.to_string().contains("8 elements (32 bytes)"), "{refusal}");

    // Architectures that name another ring, or more than there is room for.
    let sound = String::from_utf8(
        model_upload_in(Ring::Bits32, "votes", "n", &network).headers[0].architecture.to_vec(),
    );
    let sound = sound.expect("JSON");
    assert!(sound.contains("\"ring_bits\":32"), "{sound}");
    for (from, to, told) in [
        ("\"ring_bits\":32", "\"ring_bits\":48", "a ring of 48 bits is not supported; choose 64, or 32"),
        ("\"bound_bits\":", "\"bound_bits\":1", "the limit is 12 to 30"),
        ("\"final_width\":", "\"final_width\":2", "the limit is 2 to 20"),
        ("{\"kind\":\"relu\"}", "{\"kind\":\"function\",\"function\":\"tanh\"}", ""),
    ] {
        assert!(sound.contains(from), "{from} in {sound}");
        let mut upload = model_upload_in(Ring::Bits32, "votes", "n", &network);
        upload.headers[0].architecture = sound.replace(from, to).into_bytes().into();
        let refusal = upload.send_to(&owner, 0).await.expect_err("the architecture is not sound");
        assert_eq!(refusal.reason(), "MODEL_REJECTED", "{refusal}");
        assert!(refusal.to_string().contains(told), "{refusal}");
    }
    assert_eq!(spent(&world).await, [0; 3]);
}
