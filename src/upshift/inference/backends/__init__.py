"""One file a backend; `upshift.inference.backend` lists them."""
