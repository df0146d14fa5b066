"""Defaults of options, without what the verbs import."""

from upshift.inference.defaults import MAX_DROP as MAX_DROP
