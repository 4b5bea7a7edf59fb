"""From downloads to a model: a project file as a plan for the engine."""
