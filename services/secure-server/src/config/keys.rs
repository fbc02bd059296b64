//! Every key of the two configuration files.

use concilium_privacy::MAX_MODELS_PER_OWNER;

use super::key::{Given, Key, Kind};

const fn key(name: &'static str, kind: Kind, given: Given, meaning: &'static str) -> Key {
    Key { name, kind, given, meaning }
}

const fn count(low: i64, high: i64) -> Kind {
    Kind::Integer { unit: "", low, high }
}

const fn milliseconds(low: i64, high: i64) -> Kind {
    Kind::Integer { unit: "milliseconds", low, high }
}

const fn rows(low: i64, high: i64) -> Kind {
    Kind::Integer { unit: "rows", low, high }
}

/// The keys of a server's file. Each can be overridden by a variable.
pub const SERVER_KEYS: &[Key] = &[
    key(
        "listen",
        Kind::Address,
        Given::Required("\"127.0.0.1:7400\""),
        "Where clients, owners and operators connect. On a host of its own usually 0.0.0.0:7400.",
    ),
    key(
        "peer_listen",
        Kind::Address,
        Given::Required("\"127.0.0.1:7410\""),
        "Where the two other servers connect. Nobody else is served there.",
    ),
    key(
        "peers",
        Kind::Peers,
        Given::Required("[\"127.0.0.1:7410\", \"127.0.0.1:7411\", \"127.0.0.1:7412\"]"),
        "The peer ports of servers 0, 1 and 2, in this order, this server's own included.",
    ),
    key(
        "data_directory",
        Kind::Path,
        Given::Required("\"server-0-data\""),
        "Folder of the ledger and the model shares, made if it is missing. Put it on an encrypted disk. A \
         ledger that is restored from a copy forgets what was spent since.",
    ),
    key(
        "tasks_file",
        Kind::Path,
        Given::Required("\"tasks.toml\""),
        "The task file. All three servers must say the same; they compare when they connect.",
    ),
    key(
        "ledger.url",
        Kind::Database,
        Given::Optional {
            example: "\"postgres://concilium@db.example.org:5432/concilium\"",
            absent: "the file ledger.redb in the data folder",
        },
        "A PostgreSQL database for the ledger, for a party whose server can run on one of several hosts: one \
         host at a time has it, another one that is started waits and takes over.",
    ),
    key(
        "ledger.ca",
        Kind::Path,
        Given::Optional { example: "\"database-ca.pem\"", absent: "the database must be on this host" },
        "PEM file of the authority that signed the database's certificate.",
    ),
    key(
        "ledger.password_file",
        Kind::Path,
        Given::Optional { example: "\"database-password\"", absent: "no password is sent" },
        "File with the password of the database's user, in one line.",
    ),
    key(
        "tls.ca",
        Kind::Path,
        Given::Required("\"certificates/ca.pem\""),
        "PEM file of the consortium's authority: whose certificates are accepted.",
    ),
    key(
        "tls.certificate",
        Kind::Path,
        Given::Required("\"certificates/server-0.pem\""),
        "PEM file of this server's certificate. Its name, server-0, server-1 or server-2, says which of the \
         three servers this is.",
    ),
    key(
        "tls.key",
        Kind::Path,
        Given::Required("\"certificates/server-0.key\""),
        "PEM file of this server's private key. Nobody but the server's user should be able to read it.",
    ),
    key(
        "identities.owners",
        Kind::Names { wildcard: true },
        Given::Default("[]"),
        "Owners that may share models. \"*\" admits everybody to whom the authority gave an owner's \
         certificate; an empty list admits nobody.",
    ),
    key(
        "identities.clients",
        Kind::Names { wildcard: true },
        Given::Default("[]"),
        "Clients that may ask. \"*\" admits everybody to whom the authority gave a client's certificate; an \
         empty list admits nobody.",
    ),
    key(
        "identities.operators",
        Kind::Names { wildcard: false },
        Given::Default("[]"),
        "Operators that may read the budget and the state, listed one by one.",
    ),
    key(
        "limits.batch_rows",
        rows(1, 4096),
        Given::Default("256"),
        "Most rows that are evaluated together. More rows share the rounds between the servers and take more \
         memory.",
    ),
    key(
        "limits.lanes",
        Kind::Integer { unit: "batches", low: 1, high: 8 },
        Given::Default("2"),
        "How many batches are computed beside each other, each over a connection of its own: one computes while \
         another waits for the network or the disk. Servers that differ use the least of the three. More take more \
         memory.",
    ),
    key(
        "limits.batch_wait_ms",
        milliseconds(0, 10_000),
        Given::Default("1"),
        "How long server 0 waits for further requests before it starts a batch, if the last one held several. A \
         request that comes alone starts at once.",
    ),
    key(
        "limits.waiting_requests",
        count(1, 1_000_000),
        Given::Default("1024"),
        "Most requests that wait at a time; more are refused with a status that allows a repeat. A client has no more of \
         them waiting than places are left for the others.",
    ),
    key(
        "limits.request_timeout_ms",
        milliseconds(100, 3_600_000),
        Given::Default("60000"),
        "How long a request may wait for its result.",
    ),
    key(
        "limits.arrival_timeout_ms",
        milliseconds(10, 600_000),
        Given::Default("3000"),
        "How long server 0 waits for the other servers to get their parts of a request.",
    ),
    key(
        "limits.peer_timeout_ms",
        milliseconds(100, 600_000),
        Given::Default("15000"),
        "How long a server waits for a message of another server before it gives the batch up; between \
         batches, and then for at least 5 s, for a sign of life before it makes the link anew.",
    ),
    key(
        "limits.self_test_timeout_ms",
        milliseconds(1, 600_000),
        Given::Default("30000"),
        "How long the three servers may evaluate a model in its self-test, four rows; one that takes longer is \
         rejected. No batch runs meanwhile.",
    ),
    key(
        "limits.noise_rows_ready",
        rows(1, 1_000_000),
        Given::Default("512"),
        "Rows of noise that are drawn ahead for each task. At least batch_rows, so that no request waits for a \
         draw.",
    ),
    key(
        "limits.answers_kept_days",
        Kind::Integer { unit: "days", low: 1, high: 36_500 },
        Given::Default("30"),
        "How long this server's parts of answers are kept, so that a repeat of a request gets the same answer \
         free of charge. Looked at once a day. What was spent is kept for ever.",
    ),
    key(
        "web.enabled",
        Kind::Boolean,
        Given::Default("true"),
        "Whether the operator's page and the metrics are served.",
    ),
    key(
        "web.listen",
        Kind::Address,
        Given::Optional {
            example: "\"127.0.0.1:7480\"",
            absent: "127.0.0.1 and port 7480, 7481 or 7482 on server 0, 1 or 2",
        },
        "Where the page and the metrics are served. On a loopback address as plain HTTP; on any other with TLS \
         and the server's certificate, to operators of identities.operators only.",
    ),
    key(
        "observability.log_filter",
        Kind::LogFilter,
        Given::Default("\"info\""),
        "What is logged, as in info,concilium_server=debug. The variable RUST_LOG wins over it.",
    ),
    key(
        "observability.log_format",
        Kind::Choice(&["auto", "text", "json"]),
        Given::Default("\"auto\""),
        "The form of log lines; auto is text on a terminal and JSON elsewhere.",
    ),
    key(
        "observability.otlp_endpoint",
        Kind::Endpoint,
        Given::Default("\"\""),
        "A collector that takes traces as OTLP over gRPC, such as http://127.0.0.1:4317; empty for no export. \
         Traces name callers, tasks and steps and travel unencrypted: keep the collector on this \
         host or its private network.",
    ),
    key(
        "observability.stall_warning_ms",
        milliseconds(10, 3_600_000),
        Given::Default("2000"),
        "A wait for another server that is longer than this is reported with the step and the server.",
    ),
];

/// The keys of the task file that belong to no task. They stand before the first section.
pub const TASK_FILE_KEYS: &[Key] = &[key(
    "budget_per_client_all_tasks_rho",
    Kind::Rho,
    Given::Optional { example: "2.0", absent: "no further bound" },
    "Most that one client may get of the current epochs of all tasks together. It shares the budgets out, as \
     budget_per_client_rho does within one task.",
)];

/// The keys of one task, below `[tasks.NAME]` in the task file.
pub const TASK_KEYS: &[Key] = &[
    key(
        "epoch",
        Kind::Integer { unit: "number of the epoch", low: 0, high: i64::MAX },
        Given::Required("1"),
        "The budget belongs to one epoch. One that follows an epoch with spending needs epoch_basis and \
         epoch_attested_by.",
    ),
    key(
        "epoch_basis",
        Kind::Choice(&["retrained", "carried_over"]),
        Given::Optional { example: "\"retrained\"", absent: "a first epoch" },
        "What a new epoch begins with. retrained: all models are trained anew, on records that do not count in \
         earlier epochs; it begins with nothing spent, and owners confirm it for each model. carried_over: it goes \
         on with the spending, and the models, of the epoch before. Kept in the ledger; it cannot be changed.",
    ),
    key(
        "epoch_attested_by",
        Kind::Text { most: 200 },
        Given::Optional { example: "\"the board of the registry\"", absent: "a first epoch" },
        "The person or body that answers for epoch_basis. Kept in the ledger, and shown to owners and clients.",
    ),
    key("input_shape", Kind::Shape, Given::Required("[64]"), "Shape of one input, without the batch axis."),
    key(
        "input_minimum",
        Kind::Bound,
        Given::Required("0.0"),
        "Smallest value of a feature. An input below it is refused before it is shared.",
    ),
    key(
        "input_maximum",
        Kind::Bound,
        Given::Required("1.0"),
        "Largest value of a feature. An input above it is refused before it is shared.",
    ),
    key(
        "ring_bits",
        Kind::Numbers { unit: "bits", numbers: &[64, 32] },
        Given::Default("64"),
        "Width of the ring in which models are evaluated. 32 halves memory, uploads and most of what is sent, for \
         models that fit it: products with ReLU, maxima and pooling between them, and smaller ranges. \
         `concilium-owner check` shows whether a model does, and whether its labels stay the same. Not with \
         release mean_probability.",
    ),
    key(
        "fractional_bits",
        Kind::Integer { unit: "bits", low: 6, high: 20 },
        Given::Required("16"),
        "Fractional bits of inputs, weights and activations: 8 to 20 in a ring of 64 bits, 6 to 14 in one of 32. \
         `concilium-owner check` shows how many a model allows.",
    ),
    key("classes", count(2, 64), Given::Required("10"), "Number of classes."),
    key(
        "class_names",
        Kind::Texts,
        Given::Default("[]"),
        "Names of the classes for people, in order; an empty list for numbers.",
    ),
    key(
        "release",
        Kind::Choice(&["label", "histogram", "confident_label", "mean_probability"]),
        Given::Required("\"label\""),
        "What a client gets: the class with the most noisy votes, the noisy votes of every class, the class if \
         enough models agree on it and \"no consensus\" if not, or the noisy sum of the models' probabilities. \
         All cost the same but confident_label, which costs its threshold test for every row and the answer only \
         if there is one.",
    ),
    key(
        "sigma",
        Kind::Noise,
        Given::Optional { example: "5", absent: "give scale" },
        "Standard deviation of the discrete Gaussian noise that any two servers guarantee. Give either this or \
         scale. A row costs about 1 / sigma^2 in rho.",
    ),
    key(
        "scale",
        Kind::Noise,
        Given::Optional { example: "5", absent: "give sigma" },
        "Scale of the discrete Laplace noise that any two servers guarantee. Give either this or sigma; \
         mean_probability takes sigma only.",
    ),
    key(
        "confidence_votes",
        Kind::Integer { unit: "votes", low: 1, high: 1_000_000 },
        Given::Optional { example: "30", absent: "no threshold; confident_label needs one" },
        "Votes that the most frequent class needs, with noise, for an answer of confident_label. At most as many \
         as models vote.",
    ),
    key(
        "confidence_sigma",
        Kind::Noise,
        Given::Optional { example: "20", absent: "give confidence_scale with confident_label" },
        "Standard deviation of the discrete Gaussian noise of that test. A test costs about 1 / (2 sigma^2) in \
         rho.",
    ),
    key(
        "confidence_scale",
        Kind::Noise,
        Given::Optional { example: "20", absent: "give confidence_sigma with confident_label" },
        "Scale of discrete Laplace noise of that test instead.",
    ),
    key(
        "privacy_unit",
        Kind::Choice(&["record", "owner"]),
        Given::Default("\"record\""),
        "Whom the guarantee protects. record: any one training record, as long as each owner trains its models \
         on disjoint parts of its data; noise is for one vote. owner: an owner with all its models; noise is for \
         models_per_owner votes, and a row costs models_per_owner^2 times as much.",
    ),
    key(
        "models_per_owner",
        Kind::Integer { unit: "models", low: 1, high: MAX_MODELS_PER_OWNER as i64 },
        Given::Default("1"),
        "Most models of one owner, each of which is one vote. With 1 both privacy units are the same.",
    ),
    key(
        "budget_rho",
        Kind::Rho,
        Given::Required("1.2297"),
        "Most that may ever be released about this epoch's models, to all clients together, as rho of \
         zero-concentrated differential privacy. This is the guarantee.",
    ),
    key(
        "budget_per_client_rho",
        Kind::Rho,
        Given::Optional { example: "1.0", absent: "no further bound" },
        "Most that one client may get of it. It shares the budget out and guarantees nothing to owners, because \
         clients can pool what they got.",
    ),
    key(
        "budget_window_rho",
        Kind::Rho,
        Given::Optional { example: "0.5", absent: "no window" },
        "Most that may be released within any budget_window_hours. It paces spending; what was spent stays spent.",
    ),
    key(
        "budget_window_hours",
        Kind::Integer { unit: "hours", low: 1, high: 87_600 },
        Given::Optional { example: "24", absent: "no window" },
        "Length of the window that budget_window_rho is for.",
    ),
    key("delta", Kind::Delta, Given::Required("1e-5"), "The delta at which spending is shown as epsilon."),
    key("request_rows", rows(1, 4096), Given::Default("128"), "Most rows of one request."),
];
