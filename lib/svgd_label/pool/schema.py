"""Tables of the state store; a step once released is never edited, a change is a further step."""

# images.present is 0 for one whose file is gone: a share that drops out for a minute must not cost what is known of it.
# images.open marks what may be proposed to an annotator; with it the indices below keep "next sample" flat in the
# size of the pool.
# segmentations holds what a DICOM server was told of a label's file, which its fingerprint names; of a SEG that came
# from there and became a label, when it was written.
# Tables whose content is found again by scoring stand in DERIVED.
STEPS = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

    CREATE TABLE images (
        image TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        ext TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        info TEXT NOT NULL DEFAULT '{}',
        present INTEGER NOT NULL DEFAULT 1,
        labelled INTEGER NOT NULL DEFAULT 0,
        decided INTEGER,
        validation INTEGER,
        frequency INTEGER NOT NULL DEFAULT 0,
        unusable TEXT,
        flagged TEXT,
        inferred_version INTEGER,
        queue_position INTEGER,
        rank INTEGER,
        first_position INTEGER,
        open INTEGER GENERATED ALWAYS AS
            (present AND NOT labelled AND unusable IS NULL AND flagged IS NULL) VIRTUAL
    );
    CREATE INDEX images_by_queue ON images (queue_position) WHERE open = 1 AND queue_position IS NOT NULL;
    CREATE INDEX images_by_rank ON images (rank) WHERE open = 1 AND rank IS NOT NULL;
    CREATE INDEX images_by_first ON images (first_position) WHERE open = 1 AND first_position IS NOT NULL;
    CREATE INDEX images_by_id ON images (image) WHERE open = 1;
    CREATE INDEX images_ranked ON images (rank) WHERE rank IS NOT NULL;
    CREATE INDEX images_decided ON images (decided) WHERE decided IS NOT NULL;
    CREATE INDEX images_validation ON images (validation) WHERE validation = 1;
    CREATE INDEX images_queued ON images (queue_position) WHERE queue_position IS NOT NULL;

    CREATE TABLE labels (
        image TEXT NOT NULL,
        tag TEXT NOT NULL,
        ext TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        info TEXT NOT NULL DEFAULT '{}',
        saved REAL NOT NULL,
        number INTEGER,
        PRIMARY KEY (image, tag)
    ) WITHOUT ROWID;
    CREATE INDEX labels_by_tag ON labels (tag);

    CREATE TABLE label_versions (
        image TEXT NOT NULL,
        number INTEGER NOT NULL,
        tag TEXT NOT NULL,
        file TEXT NOT NULL,
        saved REAL NOT NULL,
        client TEXT,
        model_version INTEGER,
        dice REAL,
        PRIMARY KEY (image, number)
    ) WITHOUT ROWID;

    CREATE TABLE models (
        version INTEGER PRIMARY KEY,
        file TEXT NOT NULL,
        created REAL NOT NULL,
        metrics TEXT NOT NULL
    );

    CREATE TABLE ranking (
        image TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        score REAL,
        entropy REAL,
        mutual_information REAL
    ) WITHOUT ROWID;

    CREATE TABLE acquisitions (
        step INTEGER PRIMARY KEY,
        version INTEGER NOT NULL UNIQUE,
        at REAL NOT NULL,
        strategy TEXT NOT NULL,
        picks TEXT NOT NULL,
        annotated TEXT NOT NULL,
        repeated TEXT NOT NULL
    );

    CREATE TABLE leases (
        image TEXT PRIMARY KEY,
        client TEXT NOT NULL,
        proposed REAL,
        renewed REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX leases_by_client ON leases (client, proposed);

    CREATE TABLE skips (
        client TEXT NOT NULL,
        image TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (client, image)
    ) WITHOUT ROWID;
    CREATE INDEX skips_by_time ON skips (client, at);

    CREATE TABLE scores (
        version INTEGER NOT NULL,
        image TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        entropy REAL NOT NULL,
        expected_entropy REAL NOT NULL,
        jsd REAL NOT NULL,
        variance REAL NOT NULL,
        details TEXT NOT NULL,
        features BLOB,
        PRIMARY KEY (version, image)
    );
    CREATE INDEX scores_by_image ON scores (image);

    CREATE TABLE codes (
        image TEXT PRIMARY KEY,
        fingerprint TEXT NOT NULL,
        data BLOB NOT NULL
    );

    CREATE TABLE mutual_information (
        image TEXT NOT NULL,
        partner TEXT NOT NULL,
        value REAL NOT NULL,
        PRIMARY KEY (image, partner)
    ) WITHOUT ROWID;
    CREATE INDEX mutual_information_by_partner ON mutual_information (partner);
    """,
    """
    CREATE TABLE segmentations (
        image TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        number INTEGER,
        state TEXT NOT NULL,
        why TEXT,
        attempts INTEGER NOT NULL DEFAULT 0,
        series TEXT,
        instance TEXT,
        PRIMARY KEY (image, fingerprint)
    ) WITHOUT ROWID;
    """,
    "ALTER TABLE acquisitions ADD COLUMN scores TEXT NOT NULL DEFAULT '{}';",
    "ALTER TABLE segmentations ADD COLUMN written REAL;",
)

DERIVED = ("scores", "codes", "mutual_information")
KEPT = (
    "meta",
    "images",
    "labels",
    "label_versions",
    "models",
    "ranking",
    "acquisitions",
    "leases",
    "skips",
    "segmentations",
)
