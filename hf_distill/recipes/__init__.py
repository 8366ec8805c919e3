"""Pairs of models with published settings, and which models go together.

A recipe is data: one YAML file in this folder. Nothing here imports PyTorch.
"""

from hf_distill.recipes.families import Family, Student, families, family_of
from hf_distill.recipes.recipe import Published, Recipe, list_recipes, load_recipe

__all__ = [
    "Family",
    "Published",
    "Recipe",
    "Student",
    "families",
    "family_of",
    "list_recipes",
    "load_recipe",
]
