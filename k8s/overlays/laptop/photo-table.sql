-- What the API's own migrations create: on a laptop there may be no API.
CREATE TYPE "PhotoStatus" AS ENUM ('UPLOADED', 'PROCESSING', 'READY', 'FAILED', 'NO_FACES_FOUND');
CREATE TABLE "Photo" (
    id text PRIMARY KEY,
    album_id text,
    original_name text,
    normalized_name text,
    size integer,
    type text,
    created_at timestamp(3) DEFAULT now(),
    status "PhotoStatus" NOT NULL DEFAULT 'UPLOADED'
);
