"""What `--json` printed, held against what `kdcompile schema --of` says."""

from jsonschema import Draft202012Validator

from kdcompile.cli.schemas import DOCUMENTS, schema_of


def check_document(command, document):
    """Raise what is wrong with it, or with the schema."""
    schema = schema_of(command)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(document)


def command_of(words):
    """The command that words of a command line call."""
    return next(name for end in (2, 1) if (name := " ".join(words[:end])) in DOCUMENTS)
