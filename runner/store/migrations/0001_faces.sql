-- The embeddings, one row a face. A photo that was processed and shows nobody has no row.

CREATE EXTENSION IF NOT EXISTS vector SCHEMA {vector};

CREATE TABLE {faces}.faces (
    -- Ids are compared byte by byte: quicker than by the rules of a language, and no rule of one is wanted.
    photo_id text COLLATE "C" NOT NULL,
    -- Embeddings of different models cannot be compared: every query names one.
    model text NOT NULL,
    face_index smallint NOT NULL CHECK (face_index >= 0),
    -- L2-normalised, so that the inner product is the cosine similarity.
    embedding {vector}.halfvec(512) NOT NULL CHECK (abs({vector}.l2_norm(embedding) - 1) < 0.01),
    -- x1, y1, x2, y2 in pixels of the upright photo; null where the worker that was replaced kept none.
    box real[] CHECK (cardinality(box) = 4),
    score real,
    -- Five points (eyes, nose, corners of the mouth), x and y each.
    landmarks real[] CHECK (array_dims(landmarks) = '[1:5][1:2]'),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (photo_id, model, face_index)
);

-- Never out of line: a comparison reads every embedding of an album.
ALTER TABLE {faces}.faces ALTER COLUMN embedding SET STORAGE PLAIN;
